// The Chat tab: clicks and lists in its markup, the drawer, a conversation that is followed as it grows, the clipboard.
window.studio ??= {};

{
  const more = ({dataset: {column = ''}}) => ({column, text: ''});
  const root = document.documentElement;
  const QUESTION = 'lora-studio-question';
  const canKeep = () => {
    try {
      return Boolean(sessionStorage);
    } catch {
      return false; // a browser that keeps nothing
    }
  };

  // A list in a column's head counts as a click.
  studio.chatClicks = ({element, trigger}) => {
    studio.clicks({element, trigger}, {more});
    element.addEventListener('change', ({target}) => {
      const {column} = target.dataset;
      if (target.matches('select')) trigger('click', {act: 'pick', column, value: target.value, text: ''});
    });
  };

  studio.chatTools = ({element, trigger}) => {
    const chat = element.closest('#chat') ?? element;
    const settings = () => {
      const open = chat.toggleAttribute('data-settings');
      cover();
      chat.querySelector(open ? '#chat-drawer textarea' : '#chat-tools [data-act=settings]')?.focus();
    };
    // On a narrow page the drawer lies over all else, which no key reaches then.
    const narrow = matchMedia('(max-width: 900px)');
    const cover = () => {
      const covered = narrow.matches && chat.hasAttribute('data-settings');
      for (const part of ['#header', '#tabs [role=tablist]', '#chat-top', '#chat-main']) {
        document.querySelector(part)?.toggleAttribute('inert', covered);
      }
    };
    narrow.addEventListener('change', cover);
    addEventListener('hashchange', () => {
      if (narrow.matches && chat.hasAttribute('data-settings')) settings(); // a bookmark leads to another tab
    });
    addEventListener('keydown', ({key}) => {
      if (key === 'Escape' && narrow.matches && chat.offsetParent && chat.hasAttribute('data-settings')) settings();
    });
    // The fold is one of the drawer's.
    const mix = () => {
      if (!chat.hasAttribute('data-settings')) settings();
      const label = chat.querySelector('#chat-mix .label-wrap');
      if (!label.classList.contains('open')) label.click();
      setTimeout(() => chat.querySelector('#chat-mix').scrollIntoView({block: 'start'}), 150);
    };
    // The menu opens below its button, in front of everything.
    element.addEventListener('click', ({target}) => {
      const menu = target.matches('[popovertarget]:not([data-act])') && element.querySelector('[popover]');
      if (!menu) return;
      const {bottom, right} = target.getBoundingClientRect();
      menu.style.inset = `${bottom + 4}px ${Math.max(8, root.clientWidth - right)}px auto auto`;
    });
    studio.clicks({element, trigger}, {here: {settings, mix}, more});
  };

  // The window of the conversation: it is as high as there is room, stays at the end while that grows, and a question
  // is changed in its place.
  studio.chatBoard = ({element, trigger, watch}) => {
    const view = element.closest('#chat-window') ?? element;
    const chat = element.closest('#chat') ?? element;
    view.tabIndex = 0;
    view.setAttribute('role', 'region');
    view.setAttribute('aria-label', 'Conversation');
    const place = () => {
      const top = Math.round(chat.getBoundingClientRect().top + scrollY);
      if (chat.offsetParent) root.style.setProperty('--chat-top', `${top}px`);
    };
    new ResizeObserver(place).observe(document.body);
    new IntersectionObserver(place).observe(chat);
    const room = () => view.scrollHeight - view.clientHeight - view.scrollTop;
    let atEnd = true;
    view.addEventListener('scroll', () => (atEnd = room() < 40));
    const follow = () => {
      if (atEnd) view.scrollTop = view.scrollHeight;
    };
    watch('value', () => {
      if (element.querySelector('.chat-row:last-child [role=status]')) atEnd = true; // a question was asked
      follow();
    });
    new ResizeObserver(follow).observe(view);

    function edit(node) {
      const bubble = node.closest('.chat-question');
      const question = bubble.querySelector('.ls-said');
      if (bubble.querySelector('textarea')) return;
      const [box, row, ask, leave] = ['textarea', 'div', 'button', 'button'].map((tag) => document.createElement(tag));
      box.value = question.textContent;
      box.setAttribute('aria-label', 'Edit the question');
      box.rows = Math.min(8, box.value.split('\n').length + 1);
      row.className = 'chat-edit';
      for (const button of [ask, leave]) button.type = 'button';
      ask.textContent = 'Ask edited question';
      leave.textContent = 'Cancel';
      row.append(ask, leave);
      question.hidden = node.hidden = true;
      bubble.append(box, row);
      box.focus();
      leave.onclick = () => {
        box.remove();
        row.remove();
        question.hidden = node.hidden = false;
        node.focus();
      };
      const {column, value} = node.dataset;
      ask.onclick = () => trigger('click', {act: 'edit', column, value, text: box.value});
      box.onkeydown = (event) => {
        if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) ask.click();
        if (event.key === 'Escape') leave.click();
      };
    }
    studio.clicks({element, trigger}, {here: {edit}, more});

    // A question that is not asked yet outlives a reload. Its box is drawn after the board.
    const typed = () => chat.querySelector('#chat-question textarea');
    const restore = (frames) => {
      const box = typed();
      const text = sessionStorage.getItem(QUESTION);
      if (!box && frames) return requestAnimationFrame(() => restore(frames - 1));
      if (!box || !text || box.value) return;
      box.value = text;
      box.dispatchEvent(new Event('input', {bubbles: true}));
    };
    if (canKeep()) {
      addEventListener('pagehide', () => typed() && sessionStorage.setItem(QUESTION, typed().value));
      restore(100);
    }

    // Enter sends by Gradio's own; here it does with Ctrl as well.
    chat.addEventListener(
      'keydown',
      (event) => {
        if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
        if (!event.target.closest('#chat-question')) return;
        event.preventDefault();
        event.stopPropagation();
        document.querySelector('#chat-send')?.click();
      },
      true,
    );
  };

  // Below a long conversation, token probabilities would come out of sight.
  studio.chatTokens = ({element, watch}) =>
    watch('value', () => element.firstElementChild?.scrollIntoView({block: 'nearest'}));

  studio.chatCopied = ({element, watch}) => {
    watch('value', async () => {
      const box = element.querySelector('[data-copied]');
      if (!box) return;
      try {
        await navigator.clipboard.writeText(box.value);
      } catch {
        box.hidden = false;
        box.select();
        document.execCommand('copy');
        box.hidden = true;
      }
    });
  };
}
