// The page as a whole: the tab and the run that the address names, keys, menus, and what is brought into sight.
window.studio ??= {};

// The address is #TAB, or #runs/RUN.
const addressParts = () => location.hash.slice(1).split('/');
const openTab = () => document.querySelector('#tabs [role=tab][aria-selected=true]')?.dataset.tabId;
const [askedTab, askedRun = ''] = addressParts(); // read before the first tab writes its own name there
studio.askedTab = askedTab;
studio.askedRun = askedRun;

// a bookmark or a link chosen while the page is open
addEventListener('hashchange', () => {
  const [name, run] = addressParts();
  const tabs = [...document.querySelectorAll('#tabs [role=tab]')];
  tabs.find((tab) => tab.dataset.tabId === name)?.click();
  if (name !== 'runs' || !run || run === studio.shownRun) return;
  if (studio.openListed) studio.openListed(run);
  else studio.linkedRun = run; // until the list of runs is drawn
});

const writeAddress = (tab = openTab()) => {
  const run = tab === 'runs' && studio.shownRun ? '/' + studio.shownRun : '';
  history.replaceState(null, '', location.pathname + location.search + '#' + tab + run);
};

// The run that the Runs tab shows now; empty for none or several.
studio.runShown = (run) => {
  if (run === studio.shownRun) return;
  studio.shownRun = run;
  if (openTab() === 'runs') writeAddress();
};

// Gradio's tabs take no arrow keys: to the left and right, to the first and the last.
addEventListener('keydown', (event) => {
  const list = event.target.closest?.('[role=tablist]');
  if (!list || event.target.role !== 'tab' || event.ctrlKey || event.altKey || event.metaKey) return;
  const tabs = [...list.querySelectorAll('[role=tab]:not([disabled])')];
  const at = tabs.indexOf(event.target);
  const last = tabs.length - 1;
  const places = {ArrowRight: at < last ? at + 1 : 0, ArrowLeft: at ? at - 1 : last, Home: 0, End: last};
  const next = tabs[places[event.key]];
  if (!next) return;
  event.preventDefault();
  next.focus();
  next.click();
});

// Tab leads from field to field. In Chromium a list of choices that scrolls takes the focus, and vanishes with it; an
// editor of text indents, and would never be left.
addEventListener('keydown', (event) => {
  if (event.key !== 'Tab') return;
  for (const list of document.querySelectorAll('ul[role=listbox]')) list.tabIndex = -1;
  if (event.target.closest?.('.cm-editor')) event.stopImmediatePropagation();
}, true);

// A menu hangs below the button before it: a choice, Escape or a click elsewhere closes it.
{
  const openerOf = (menu) => menu.parentElement.querySelector('.opens-menu');
  const show = (menu, open) => {
    menu.classList.toggle('open', open);
    openerOf(menu).setAttribute('aria-expanded', String(open));
  };
  const choices = (menu) => [...menu.querySelectorAll('button')].filter((button) => button.offsetParent);
  addEventListener('click', ({target}) => {
    const opener = target.closest?.('.opens-menu');
    for (const menu of document.querySelectorAll('.menu')) {
      const open = openerOf(menu) === opener && !menu.classList.contains('open');
      if (open || menu.classList.contains('open')) show(menu, open);
      if (open) choices(menu)[0]?.focus();
    }
  });
  addEventListener('keydown', (event) => {
    const menu = document.querySelector('.menu.open');
    if (!menu) return;
    if (event.key === 'Escape') {
      show(menu, false);
      openerOf(menu).focus();
    }
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = choices(menu);
    buttons.at((buttons.indexOf(document.activeElement) + step) % buttons.length).focus();
  });
}

// Light or dark, as the person chose last in this browser; without a choice, as the system or the address says.
const theme = (value) => {
  try {
    if (value) localStorage.setItem('lora-studio-theme', value);
    return localStorage.getItem('lora-studio-theme');
  } catch {
    return null; // a browser that keeps nothing follows the system
  }
};
addEventListener('DOMContentLoaded', () => {
  if (new URLSearchParams(location.search).has('__theme')) return;
  const hold = () => theme() && document.body.classList.toggle('dark', theme() === 'dark');
  // Gradio sets its class by the system's theme as it starts, and when that changes.
  new MutationObserver(hold).observe(document.body, {attributeFilter: ['class']});
});
const switchTheme = () => {
  const dark = document.body.classList.toggle('dark', !document.body.classList.contains('dark'));
  theme(dark ? 'dark' : 'light');
  tellDocs();
};
// The pages of the documentation, which run no script, learn by a cookie how this page looks.
const tellDocs = () => {
  const value = document.body.classList.contains('dark') ? 'dark' : 'light';
  document.cookie = `lora-studio-theme=${value}; path=/; samesite=lax`;
};
studio.header = ({element}) => studio.clicks({element}, {here: {theme: switchTheme}});

// Writes the tab in sight into the address; of the timers, each named by its tab, those of that tab tick. Another tab
// is seen from its top.
let seenTab;
studio.timersInSight = (places) => {
  const open = openTab();
  if (seenTab && seenTab !== open) scrollTo(0, 0);
  seenTab = open;
  writeAddress(open);
  return places.map((tab) => ({__type__: 'update', active: tab === open}));
};

// The question mark leads to the documentation of the tab in sight, whose name the address holds.
for (const kind of ['click', 'auxclick']) {
  addEventListener(kind, ({target}) => {
    const link = target.closest?.('a[href^="docs/"]');
    if (link) tellDocs();
    if (link?.matches('.help')) link.href = 'docs/tab/' + location.hash.slice(1).split('/')[0];
  }, true);
}

// On a phone, what is said of a file stands below all that can be chosen.
studio.showAnalysis = () => {
  const look = document.querySelector('#data-look');
  if (look.getBoundingClientRect().bottom > innerHeight - 80) look.scrollIntoView({block: 'start', behavior: 'smooth'});
};

// On a phone, the notice is below what is in sight first.
studio.showChanges = () =>
  setTimeout(() => {
    const notices = [...document.querySelectorAll('#open-file-problem .ls-notice, #form-changes')];
    const notice = notices.find((item) => item.offsetParent);
    if (!notice) return;
    const {top, bottom} = notice.getBoundingClientRect();
    if (top < 0 || bottom > innerHeight) notice.scrollIntoView({block: 'center'});
  }, 150);

// After a start: problems come into sight, or else the tab of the new run did, before the run is painted.
studio.started = () => {
  studio.showRun();
  document.querySelector('#form-summary .ls-notice, #checks .checks')?.scrollIntoView({block: 'nearest'});
};

// Until a run is painted, nothing of the one before it is in sight.
studio.hideRun = () => {
  studio.listRuns(false);
  document.querySelector('.run-looked-at')?.classList.add('stale');
};
studio.showRun = () => document.querySelector('.run-looked-at')?.classList.remove('stale');

// A tab that was left without an adapter may have one now. Its form waits for the answer, which fills it.
const opening = (tab, open) => {
  document.querySelector(`#tab-${tab} .no-adapter`)?.classList.toggle('stale', open);
  document.querySelector(`#tab-${tab} .job-form, #tab-${tab} #chat-drawer`)?.toggleAttribute('inert', open);
};
studio.reopen = (tab) => opening(tab, true);
studio.reopened = (tab) => {
  document.querySelector(`#tab-${tab} .job-form`)?.classList.add('filled');
  opening(tab, false);
};

// A name that this browser's chat is kept under; a browser that keeps nothing has one until it is reloaded.
studio.chatName = () => {
  const hex = (byte) => byte.toString(16).padStart(2, '0');
  const fresh = () => [...crypto.getRandomValues(new Uint8Array(12))].map(hex).join('');
  try {
    let name = localStorage.getItem('lora-studio-chat') || '';
    if (!/^[0-9a-f]{24}$/.test(name)) localStorage.setItem('lora-studio-chat', (name = fresh()));
    return name;
  } catch {
    return (studio.ownName ??= fresh());
  }
};

// Notifications of this browser: asked for by a click, shown while the page is hidden. The page asks what ended since.
const NOTIFY = 'lora-studio-notify';
const ASK_EVERY = 10000; // milliseconds; browsers slow down the clocks of hidden pages
let endedSince = 0;

const sayNotify = (words) => {
  const line = document.querySelector('#notify-state .quiet');
  if (line) line.textContent = words;
};
const wantsNotes = () => {
  try {
    return window.Notification?.permission === 'granted' && localStorage.getItem(NOTIFY) === 'on';
  } catch {
    return false;
  }
};
studio.notifyMe = async () => {
  if (!window.Notification) return sayNotify('This browser has no notifications, or allows them only with https.');
  const answer = await Notification.requestPermission();
  if (answer !== 'granted') return sayNotify('This browser does not allow notifications of this page.');
  localStorage.setItem(NOTIFY, 'on');
  sayNotify('You are notified while this page is open and hidden.');
};
const askForEnds = async () => {
  if (!document.hidden || !wantsNotes()) {
    endedSince = Date.now() / 1000;
    return;
  }
  try {
    const answer = await fetch(`studio/ended?since=${endedSince}`, {cache: 'no-store'});
    if (!answer.ok) return;
    const {now, ended} = await answer.json();
    endedSince = now;
    for (const {title, text} of ended) {
      const note = new Notification(title, {body: text, tag: title});
      note.onclick = () => window.focus();
    }
  } catch {} // the server does not answer: the page says so by itself
};
setInterval(askForEnds, ASK_EVERY);
