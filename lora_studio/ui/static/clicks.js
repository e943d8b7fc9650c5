// What is clicked and typed in markup that the server wrote. A button says in data-act what it asks for; its data-
// attributes and what else is there to tell reach the server as one click. `at` is what Gradio gives a component:
// its element, `trigger` to send an event, `watch` to hear of a new value.
window.studio ??= {};

// `questions` are asked by act before it is sent; `here` has the acts that the page does by itself; `more` adds values.
studio.clicks = ({element, trigger}, {questions = {}, here = {}, more = () => ({})} = {}) => {
  element.addEventListener('click', (event) => {
    const node = event.target.closest('[data-act]');
    if (!node || node.disabled) return;
    const {act} = node.dataset;
    if (here[act]) return here[act](node);
    if (questions[act] && !confirm(questions[act])) return;
    trigger('click', {value: '', ...node.dataset, ...more(node)});
  });
};

// Gives the focus back to the node last handed to it, as soon as the markup was written anew.
studio.refocus = ({element, watch}) => {
  let focused = null;
  watch('value', () => {
    if (focused) element.querySelector(focused)?.focus({preventScroll: true});
    focused = null;
  });
  return ({dataset: {act, value, change}}) => {
    focused = act ? `[data-act="${act}"][data-value="${CSS.escape(value)}"]` : `[data-change="${change}"]`;
  };
};

// Copies a text, also where the browser keeps its clipboard from pages without https; and says so for a moment.
studio.copy = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = document.createElement('textarea');
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand('copy');
    field.remove();
  }
  const message = document.createElement('div');
  message.className = 'copied';
  message.setAttribute('role', 'status');
  message.textContent = 'Copied';
  document.body.append(message);
  setTimeout(() => message.remove(), 2000);
};
studio.copySummary = () => studio.copy(document.querySelector('.run-head[data-summary]').dataset.summary);

// A link to a file that was made for a download is followed by itself.
studio.download = ({element, watch}) => watch('value', () => element.querySelector('a[download]')?.click());

// The list of runs, or the table of them, keeps its focus and how far it is scrolled; a click on a row opens its run.
// The address names the run that is shown; one that it named before the list was there is opened now.
studio.runList = ({element, trigger, watch}) => {
  const named = (node) => `[data-act="${node.dataset.act}"][data-value="${CSS.escape(node.dataset.value)}"]`;
  const listed = () => [...element.querySelectorAll('[data-act="tick"]')].map((box) => box.dataset.value);
  let focused = '';
  let top = 0;
  element.addEventListener('focusin', ({target}) => {
    focused = target.dataset.act ? named(target) : '';
  });
  element.addEventListener('focusout', () => {
    focused = '';
  });
  element.addEventListener(
    'scroll',
    ({target}) => {
      if (target.scrollTop) top = target.scrollTop;
    },
    true,
  );
  studio.clicks({element, trigger}, {
    more: ({dataset: {act}}) => {
      if (act === 'page' || act === 'sort') top = 0;
      return {listed: listed()};
    },
  });
  element.addEventListener('click', ({target}) => {
    const row = target.closest('[data-open], [data-group]');
    if (!row || target.closest('[data-act], .tick')) return;
    const {open, group} = row.dataset;
    trigger('click', {act: open ? 'open' : 'group', value: open ?? group, listed: listed()});
  });
  const note = () => studio.runShown(element.querySelector('[data-shown]')?.dataset.shown ?? '');
  watch('value', () => {
    const scroller = element.querySelector('.run-table, .run-rail');
    if (scroller) scroller.scrollTop = top;
    if (focused) element.querySelector(focused)?.focus({preventScroll: true});
    note();
  });
  note();
  studio.openListed = (run) => trigger('click', {act: 'open', value: run, listed: listed()});
  if (studio.linkedRun) setTimeout(() => studio.openListed(studio.linkedRun));
  element.addEventListener('click', ({target}) => {
    const row = target.closest('[data-open], [data-group]');
    if (row && !target.closest('.tick, [data-act="tick"]')) studio.listRuns(false);
  });
};

// On a phone the list is behind the run: a button leads back to it.
studio.listRuns = (listing) => document.querySelector('.runs-layout')?.classList.toggle('listing', listing);
studio.runBack = ({element}) => element.addEventListener('click', () => studio.listRuns(true));

// An evaluation: fields that are chosen from count as clicks, and rows that were unfolded stay so.
studio.evaluation = ({element, trigger, watch}, {questions}) => {
  const keep = studio.refocus({element, watch});
  const key = (node) => node.dataset.row + node.firstElementChild.textContent;
  const opened = new Set();
  studio.clicks({element, trigger}, {questions, more: keep});
  element.addEventListener('change', ({target}) => {
    const node = target.closest('[data-change]');
    if (!node) return;
    keep(node);
    trigger('click', {act: node.dataset.change, value: node.value});
  });
  element.addEventListener(
    'toggle',
    ({target}) => {
      if (target.dataset.row) opened[target.open ? 'add' : 'delete'](key(target));
    },
    true,
  );
  watch('value', () => {
    for (const node of element.querySelectorAll('details[data-row]')) node.open = opened.has(key(node));
  });
};

// An export: its settings go along with the click that starts it, a secret goes once; a command is copied.
studio.exportForm = ({element, trigger, watch}, {questions}) => {
  const keep = studio.refocus({element, watch});
  const typed = () => {
    const fields = [...element.querySelectorAll('[data-setting]')];
    return Object.fromEntries(
      fields.map((node) => [node.dataset.setting, node.type === 'checkbox' ? node.checked : node.value]),
    );
  };
  const copy = async (node) => {
    try {
      await navigator.clipboard.writeText(node.dataset.copy);
    } catch {
      const range = document.createRange();
      range.selectNodeContents(node.previousElementSibling);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      document.execCommand('copy');
    }
    node.textContent = 'Copied';
  };
  studio.clicks({element, trigger}, {
    questions,
    more: (node) => {
      keep(node);
      if (node.dataset.act !== 'start') return {values: {}, secret: ''};
      const field = element.querySelector('[data-secret]');
      const secret = field?.value ?? '';
      if (field) field.value = '';
      return {values: typed(), secret};
    },
  });
  element.addEventListener('click', ({target}) => {
    const node = target.closest('[data-copy]');
    if (node) copy(node);
  });
  element.addEventListener('change', ({target}) => {
    if (!target.matches('[data-setting]')) return;
    const value = element.querySelector('[data-form]').dataset.form;
    trigger('click', {act: 'keep', value, values: typed(), secret: ''});
  });
};
