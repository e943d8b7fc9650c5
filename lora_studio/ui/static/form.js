// What the browser does for a whole form, so that no field needs a component of its own for it; and for token boxes.
window.studio ??= {};

// Tells of typing: a text's own `input` event misses what is pasted or deleted, its `change` also tells of what the
// page filled in. Gives every field its "?" with hint and config key (`tips`), its unit, and a button that resets what
// differs from the recipe; puts lines under fields, errors and others; hides what has no effect. The value has all of
// it by element id. A field that is not drawn yet, because its fold was never open, gets its share when it is.
studio.form = ({element, trigger, props, watch}, {tips, units}) => {
  const form = element.closest('.train');
  const hiding = document.createElement('style');
  const drawing = new MutationObserver(() => requestAnimationFrame(show));
  let waiting;
  document.head.append(hiding);
  form.addEventListener('input', ({target}) => {
    if (!target.closest('[id^="set-"]')) return;
    clearTimeout(waiting);
    waiting = setTimeout(() => trigger('input'), 200);
  });
  form.addEventListener('click', ({target}) => {
    const button = target.closest('.field-reset');
    if (button) trigger('click', {act: 'reset', value: button.closest('[id^="set-"]').id});
  });
  form.closest('[role=tabpanel]')?.addEventListener('keydown', startByKeyboard);
  function startByKeyboard(event) {
    if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey) || event.target.closest('.cm-editor')) return;
    event.preventDefault();
    document.activeElement?.blur(); // a list takes over what was typed into it as it is left
    setTimeout(() => document.querySelector('#start')?.click(), 50);
  }
  function make(tag, className, words = '') {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = words;
    if (tag === 'button') node.type = 'button';
    return node;
  }
  function tools(field) {
    const [hint, key] = tips[field.id];
    const box = make('span', 'field-tools');
    const help = make('button', 'field-help', '?');
    const tip = make('span', 'field-tip', `${hint} `);
    const title = field.querySelector('[data-testid="block-info"], label > span')?.textContent.trim() ?? key;
    tip.id = `${field.id}-tip`;
    tip.setAttribute('role', 'tooltip');
    tip.append(make('code', '', key));
    help.setAttribute('aria-label', `? ${title}`);
    help.setAttribute('aria-describedby', tip.id);
    help.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') help.blur();
    });
    if (units[field.id]) box.append(make('span', 'field-unit', units[field.id]));
    box.append(help, tip);
    field.append(box);
    return box;
  }
  function reset(box, recipe) {
    let button = box.querySelector('.field-reset');
    if (recipe === undefined) return button?.remove();
    if (!button) box.append((button = make('button', 'field-reset')));
    button.textContent = 'Reset';
    button.title = `Recipe: ${recipe}`;
    button.setAttribute('aria-label', `Reset to ${recipe}`);
  }
  function write(field, {words, wrong}) {
    let line = field.querySelector(':scope > .field-error, :scope > .field-note');
    if (!line) field.append((line = document.createElement('div')));
    line.className = wrong ? 'field-error' : 'field-note';
    wrong ? line.setAttribute('role', 'alert') : line.removeAttribute('role');
    line.textContent = words;
    if (wrong) field.querySelectorAll('input, textarea').forEach((input) => input.setAttribute('aria-invalid', 'true'));
  }
  function show() {
    drawing.disconnect();
    const {lines = {}, changed = {}, hidden = []} = props.value || {};
    hiding.textContent = hidden.length ? `${hidden.map((id) => `#${id}`).join()} { display: none !important; }` : '';
    for (const line of form.querySelectorAll('.field-error, .field-note')) {
      const field = line.parentElement;
      field.querySelectorAll('[aria-invalid]').forEach((input) => input.removeAttribute('aria-invalid'));
      if (!lines[field.id]) line.remove();
    }
    for (const field of form.querySelectorAll('[id^="set-"].block')) {
      if (!tips[field.id]) continue;
      reset(field.querySelector(':scope > .field-tools') ?? tools(field), changed[field.id]);
      if (lines[field.id]) write(field, lines[field.id]);
    }
    form.querySelector('#form-yaml .cm-content')?.setAttribute('aria-label', 'Config (YAML)');
    drawing.observe(form, {childList: true, subtree: true});
  }
  watch('value', show);
  show();
};

// The list of what a search found: the best match is brought into sight and marked, as soon as its fold is open. An
// attribute marks it: Gradio writes the classes of its elements anew.
studio.matches = ({element, trigger, watch}) => {
  let waiting;
  function mark(tries) {
    const id = element.querySelector('[data-best]')?.dataset.best;
    const field = id && document.getElementById(id);
    if (id && !field?.offsetParent && tries) return (waiting = setTimeout(mark, 50, tries - 1));
    document.querySelectorAll('[data-marked]').forEach((other) => delete other.dataset.marked);
    if (!field?.offsetParent) return;
    field.dataset.marked = '';
    const {top, bottom} = field.getBoundingClientRect();
    if (top < 120 || bottom > innerHeight - 80) field.scrollIntoView({block: 'center'});
  }
  function show() {
    clearTimeout(waiting);
    waiting = setTimeout(mark, 50, 60);
  }
  studio.clicks({element, trigger});
  watch('value', show);
  show();
};

// Saves the config as a file that bears the run's name, else those of model and data.
studio.saveConfig = (text, title, model, data) => {
  const last = (name) => String(name ?? '').split(/[\\/]/).filter(Boolean).pop() ?? '';
  const name = title || [last(model), last(data).replace(/\.\w+$/, '')].filter(Boolean).join('-');
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text ?? ''], {type: 'application/yaml'}));
  link.download = `${name.replace(/[^\p{L}\p{N}._-]+/gu, '-').replace(/^[-.]+|[-.]+$/g, '') || 'config'}.yaml`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

// A long row may begin with many tokens that are cut off: what is kept is in sight first, with a line before it.
studio.tokens = ({element, watch}) => {
  const show = () => {
    for (const box of element.querySelectorAll('.ls-tokens')) {
      const kept = box.querySelector('.ls-tok:not(.ls-x)');
      box.scrollTop = kept ? kept.offsetTop - 2 * kept.offsetHeight : 0;
    }
  };
  watch('value', show);
  show();
};
