"""How the chat tab looks: columns, below each other on a phone, the buttons in them, and answers token by token."""

CSS = """
.chat-columns { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(280px, 1fr); gap: 12px;
  overflow-x: auto; scroll-snap-type: x proximity; }
.chat-column { scroll-snap-align: start; min-width: 0; display: flex; flex-direction: column; gap: 6px; }
.chat-column header { display: flex; align-items: baseline; justify-content: space-between; gap: 8px; flex-wrap: wrap; }
.chat-column h3, .chat-tokens h3 { font-size: 15px; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
.chat-column header span { white-space: nowrap; }
.chat-talk { height: calc(100vh - 610px); min-height: 240px; overflow-y: auto; display: flex;
  flex-direction: column-reverse; border: 1px solid var(--line); border-radius: 8px; padding: 12px;
  background: var(--block-background-fill); }
.chat-talk > * { margin-bottom: auto !important; width: 100%; }
.chat-talk .ls-bubble { max-width: min(92%, 70ch); }
.chat-talk mark { background: color-mix(in srgb, var(--warn) 32%, transparent); color: inherit; border-radius: 3px; }
#chat-blind-panel .chat-bar { margin-bottom: 12px; }
.chat-bar { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 8px; }
.chat-bar button, .chat-column button, .chat-edit button { border: 1px solid var(--line); border-radius: 6px;
  padding: 4px 10px; background: var(--block-background-fill); color: var(--body-text-color); cursor: pointer;
  font-size: 13px; font-weight: 400; text-align: left; }
.chat-column button { padding: 1px 8px; margin-left: 4px; font-size: 12px; }
.chat-bar button:hover, .chat-column button:hover { border-color: var(--busy); }
.chat-bar button[aria-pressed="true"] { border-color: var(--busy); background: var(--soft); font-weight: 600; }
.chat-bar button, .chat-column button, .chat-edit button { font-weight: 400 !important; margin-bottom: 0 !important;
  margin-top: 0 !important; }
.chat-edit { display: flex; gap: 4px; margin-top: 4px; }
.chat-column textarea { width: 100%; min-width: 200px; background: var(--block-background-fill);
  color: var(--body-text-color); border: 1px solid var(--busy); border-radius: 6px; padding: 6px; font-size: 14px; }
.chat-tokens { display: grid; gap: 8px; } .chat-tokens p { margin: 0; color: var(--body-text-color-subdued); }
.chat-turn { border-bottom: 2px dotted var(--body-text-color); }
.chat-tally td:last-child { white-space: nowrap; }
@media (max-width: 640px) {
  .chat-columns { grid-auto-flow: row; grid-auto-columns: auto; grid-template-columns: minmax(0, 1fr); }
  .chat-talk { height: auto; min-height: 80px; max-height: 70vh; }
}
"""
