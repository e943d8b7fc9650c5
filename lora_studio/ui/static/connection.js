// Says so while the server does not answer, and holds the page still, for what is typed then can't be kept.
// When the server answers again, the page loads anew: a server that was restarted knows nothing of this one.
(() => {
  const EVERY = 2000; // milliseconds
  const ask = window.fetch.bind(window);
  let waiting = false;

  const answers = () =>
    ask(location.pathname, {method: 'HEAD', cache: 'no-store', redirect: 'manual'}).then(() => true, () => false);
  const pause = () => new Promise((resolve) => setTimeout(resolve, EVERY));

  async function lost() {
    if (waiting) return;
    waiting = true;
    if (await answers()) {
      waiting = false; // one request was cut off, such as an upload that was cancelled
      return;
    }
    const banner = document.createElement('div');
    banner.id = 'no-server';
    banner.setAttribute('role', 'alert');
    banner.textContent =
      'LoRA Studio does not answer. Runs go on without it. ' +
      'If it was stopped, start it again: this page reloads by itself.';
    document.body.append(banner);
    document.body.classList.add('server-gone');
    for (const part of document.querySelectorAll('.gradio-container')) part.inert = true;
    while (!(await answers())) await pause();
    location.reload();
  }

  window.fetch = (...given) =>
    ask(...given).catch((error) => {
      if (error.name !== 'AbortError') lost();
      throw error;
    });
})();
