// The page as a whole: the tab that the address names, and what is brought into sight.
window.studio ??= {};

studio.askedTab = location.hash.slice(1); // read before the first tab writes its own name there

// a bookmark chosen while the page is open
addEventListener('hashchange', () => {
  const tabs = [...document.querySelectorAll('#tabs [role=tab]')];
  tabs.find((tab) => '#' + tab.dataset.tabId === location.hash)?.click();
});

// Light or dark, as the person chose last in this browser; without a choice, as the system does.
{
  const KEY = 'lora-studio-theme';
  const asked = new URLSearchParams(location.search).get('__theme');
  const store = (value) => {
    try {
      if (value) localStorage.setItem(KEY, value);
      return localStorage.getItem(KEY);
    } catch {
      return null; // a browser that keeps nothing follows the system
    }
  };
  const chosen = asked ?? store();
  if (chosen === 'dark' || chosen === 'light') {
    // Gradio sets its class by the system's theme as it starts, and when that changes.
    const hold = () => document.body.classList.toggle('dark', (store() ?? chosen) === 'dark');
    if (!asked) addEventListener('DOMContentLoaded', () => new MutationObserver(hold).observe(document.body, {attributeFilter: ['class']}));
  }
  studio.header = ({element}) =>
    studio.clicks({element}, {
      here: {
        theme: () => {
          const dark = !document.body.classList.contains('dark');
          store(dark ? 'dark' : 'light');
          document.body.classList.toggle('dark', dark);
        },
      },
    });
}

// Writes the tab in sight into the address; of the timers, each named by its tab, those of that tab tick.
studio.timersInSight = (places) => {
  const open = document.querySelector('#tabs [role=tab][aria-selected=true]').dataset.tabId;
  history.replaceState(null, '', location.pathname + location.search + '#' + open);
  return places.map((tab) => ({__type__: 'update', active: tab === open}));
};

// On a phone, what is said of a file stands below all that can be chosen.
studio.showAnalysis = () => {
  const look = document.querySelector('#data-look');
  if (look.getBoundingClientRect().bottom > innerHeight - 80) look.scrollIntoView({block: 'start', behavior: 'smooth'});
};

// The tab opens where the page was scrolled to before, which is rarely where the notice is.
studio.showChanges = () =>
  setTimeout(() => {
    const notice = document.querySelector('#form-changes');
    if (notice?.offsetParent) notice.scrollIntoView({block: 'center'});
  }, 150);

studio.showProblems = () =>
  document.querySelector('#form-summary .ls-notice, #checks .checks')?.scrollIntoView({block: 'nearest'});

// Until a run is painted, nothing of the one before it is in sight.
studio.hideRun = () => document.querySelector('.run-looked-at')?.classList.add('stale');
studio.showRun = () => document.querySelector('.run-looked-at')?.classList.remove('stale');

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
