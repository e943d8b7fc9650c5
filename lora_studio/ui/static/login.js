// A page whose session ended asks for the login again as soon as it hears so.
(() => {
  const ask = window.fetch;
  window.fetch = async (...request) => {
    const answer = await ask(...request);
    if (answer.status === 401) location.reload();
    return answer;
  };
})();
