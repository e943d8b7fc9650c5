"""How the export tab looks: the cards of the forms, their settings, a result's files and commands. Rules only."""

CSS = """
.export-cards { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(min(240px, 100%), 1fr)); }
.export-cards button { display: flex; flex-direction: column; gap: 4px; text-align: left; cursor: pointer;
  border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; margin: 0 !important; font-weight: 400;
  background: var(--block-background-fill); color: var(--body-text-color); }
.export-cards button:hover { border-color: var(--busy); }
.export-cards button[aria-checked="true"] { border-color: var(--busy); box-shadow: inset 0 0 0 1px var(--busy);
  background: var(--soft); }
.export-cards b { font-size: 15px; } .export-cards span { font-size: 13px; line-height: 1.4; flex: 1; }
.export-cards small { font-size: 12px; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.export-cards + p.ls-hint { margin: 6px 0 0; font-size: 13px; }
.export-fields { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(min(280px, 100%), 1fr)); }
.export-fields label { display: flex; flex-direction: column; gap: 4px; border: 1px solid var(--line);
  border-radius: 8px; padding: 10px 12px; background: var(--block-background-fill); color: var(--body-text-color); }
.export-fields b { font-weight: 600; font-size: 14px; display: flex; align-items: center; gap: 8px; }
.export-fields small { font-size: 13px; color: var(--body-text-color-subdued); line-height: 1.4; flex: 1; }
.export-fields input:not([type="checkbox"]), .export-fields select { width: 100%; border: 1px solid
  var(--input-border-color); border-radius: 6px; padding: 6px 10px; background: var(--input-background-fill);
  color: var(--body-text-color); font-size: 14px; }
.export-fields select { appearance: auto; }
.export-fields input[type="checkbox"] { width: 16px; height: 16px; accent-color: var(--busy); margin: 0; }
.export-acts { margin-top: 12px; }
.export-acts button.export-start { background: #137a72; color: #fff; border: 1px solid #137a72; border-radius: 6px;
  padding: 9px 20px; font-weight: 600; cursor: pointer; margin: 0; }
.export-acts button.export-start:hover { background: #12625d; }
#export-head p { margin: 8px 0; color: var(--body-text-color); overflow-wrap: anywhere; }
#export-head p.id { color: var(--body-text-color-subdued); font-size: 12px; font-family: var(--font-mono); }
.export-command { display: flex; gap: 8px; align-items: flex-start; margin: 8px 0; }
.export-command pre { flex: 1; min-width: 0; margin: 0; padding: 9px 12px; border-radius: 6px; background: var(--soft);
  color: var(--body-text-color); font-size: 13px; white-space: pre-wrap; overflow-wrap: anywhere; }
.export-command button, .export-files button { font-weight: 400; padding: 4px 12px;
  border: 1px solid var(--line); border-radius: 6px;
  font-size: 13px; background: var(--block-background-fill); color: var(--body-text-color); cursor: pointer;
  margin: 0; }
ul.export-files { list-style: none; margin: 10px 0 0; padding: 0; border: 1px solid var(--line); border-radius: 8px;
  max-height: 280px; overflow-y: auto; background: var(--block-background-fill); }
.export-files li { display: flex; align-items: center; gap: 4px 12px; padding: 6px 12px; margin: 0;
  border-bottom: 1px solid var(--line); color: var(--body-text-color); font-size: 14px; }
.export-files li:last-child { border-bottom: 0; } .export-files span { flex: 1; overflow-wrap: anywhere; }
.export-files small { color: var(--body-text-color-subdued); white-space: nowrap; font-variant-numeric: tabular-nums; }
"""
