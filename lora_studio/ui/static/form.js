// What the browser does for a whole form, so that no field needs a component of its own for it; and for token boxes.
window.studio ??= {};

// Tells of typing: a text's own `input` event misses what is pasted or deleted, its `change` also tells of what the
// page filled in. And puts lines (the value, by element id) under their fields, errors and others; a field that is not
// drawn yet, because its fold was never open, gets its line when it is. The field under the pointer tells its config
// key.
studio.form = ({element, trigger, props, watch}, {tips}) => {
  const form = element.closest('#form');
  const drawing = new MutationObserver(show);
  let waiting;
  form.addEventListener('input', () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => trigger('input'), 200);
  });
  form.addEventListener('pointerover', ({target}) => {
    const field = target.closest('[id^="set-"]');
    if (field && !field.title) field.title = tips[field.id] ?? '';
  });
  function show() {
    drawing.disconnect();
    const lines = new Map(Object.entries(props.value || {}));
    for (const line of form.querySelectorAll('.field-error, .field-note')) {
      const field = line.parentElement;
      field.querySelectorAll('[aria-invalid]').forEach((input) => input.removeAttribute('aria-invalid'));
      if (!lines.has(field.id)) line.remove();
    }
    let absent = false;
    for (const [id, {words, wrong}] of lines) {
      const field = document.getElementById(id);
      absent ||= !field;
      if (!field) continue;
      let line = field.querySelector(':scope > .field-error, :scope > .field-note');
      if (!line) field.append((line = document.createElement('div')));
      line.className = wrong ? 'field-error' : 'field-note';
      wrong ? line.setAttribute('role', 'alert') : line.removeAttribute('role');
      line.textContent = words;
      if (!wrong) continue;
      field.querySelectorAll('input, textarea').forEach((input) => input.setAttribute('aria-invalid', 'true'));
    }
    if (absent) drawing.observe(form, {childList: true, subtree: true});
  }
  watch('value', show);
  show();
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
