"""How the runs tab looks: the table of runs, several runs beside each other, checkpoints, the report. Rules only."""

CSS = """
.runs-top { align-items: flex-end !important; gap: 8px !important; }
.runs-top > button { flex: 0 0 auto; margin-bottom: 2px; }
.run-table { overflow: auto; max-height: min(44vh, 430px); border: 1px solid var(--line); border-radius: 8px;
  background: var(--block-background-fill); }
.run-table table { border-collapse: collapse; width: 100%; margin: 0; font-size: 14px; }
.run-table table, .ls-table table, .run-table tr, .ls-table tr { border: 0 !important; }
#run-list .run-table button { border: 0; background: none; box-shadow: none; margin: 0; border-radius: 4px; }
.run-table thead th { position: sticky; top: 0; z-index: 1; background: var(--soft); text-align: left; padding: 0;
  white-space: nowrap; border: 0 !important; border-bottom: 1px solid var(--line) !important; }
#run-list .run-table th button { width: 100%; padding: 8px 10px; font-size: 13px; font-weight: 600; text-align: inherit;
  color: var(--body-text-color-subdued); cursor: pointer; }
#run-list .run-table th[aria-sort$="ending"] button { color: var(--busy); }
.run-table td { padding: 7px 10px; border: 0 !important; border-bottom: 1px solid var(--line) !important;
  vertical-align: top; font-variant-numeric: tabular-nums; white-space: nowrap; color: var(--body-text-color); }
.run-table td.name { white-space: normal; min-width: 180px; overflow-wrap: anywhere; }
.run-table .tick { width: 34px; text-align: center; padding: 8px 0 0 10px; }
.run-table thead .tick { vertical-align: middle; padding: 0 0 0 10px; }
.run-table .tick input { width: 16px; height: 16px; accent-color: var(--busy); cursor: pointer; margin: 0; }
.run-table tbody tr { cursor: pointer; }
.run-table tbody tr:hover td { background: var(--soft); }
.run-table tr[aria-current="true"] td { background: var(--soft); }
.run-table tr[aria-current="true"] td:first-child { box-shadow: inset 3px 0 0 var(--busy); }
#run-list .run-table td.name button { padding: 0; font-size: 14px; display: inline-flex; align-items: baseline;
  gap: 8px; font-weight: 600; text-align: left;
  color: var(--body-text-color); cursor: pointer; overflow-wrap: anywhere; }
.run-table small { color: var(--body-text-color-subdued); font-size: 12px; }
.run-table td.name small, .run-table .note { display: block; padding-left: 17px; }
.run-table .note { color: var(--body-text-color-subdued); font-size: 13px; font-style: italic; }
.run-table td.state { min-width: 96px; } .run-table .bar { margin-top: 5px; }
.run-table .narrow { display: none; }
.tag { display: inline-block; background: var(--soft); border: 1px solid var(--line); border-radius: 10px;
  padding: 0 8px; font-size: 12px; margin-left: 6px; color: var(--body-text-color); font-weight: 400; }
.run-table tr:hover .tag, .run-table tr[aria-current="true"] .tag { background: var(--block-background-fill); }
.run-pager { display: flex; align-items: center; gap: 8px; justify-content: flex-end; font-size: 13px; padding: 6px 2px;
  color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.run-pager button, .acts button { border: 1px solid var(--line); border-radius: 6px; padding: 3px 10px; cursor: pointer;
  background: var(--block-background-fill); color: var(--body-text-color); font-size: 13px; white-space: nowrap; }
.run-pager button:disabled { opacity: 0.45; cursor: default; }
.run-pager button:hover:enabled, .acts button:hover { border-color: var(--busy); }
.ls-table td.acts { white-space: nowrap; text-align: right; } .acts button + button { margin-left: 6px; }
.checkpoint-table td { white-space: nowrap; }
.beside-table { max-height: 640px; }
.beside-table th[scope="row"] { position: static; background: none; font-weight: 400; color: var(--body-text-color);
  font-size: 14px; white-space: normal; min-width: 150px; }
.beside-table th small { display: block; }
.beside-table th[scope="col"] { white-space: normal; min-width: 110px; max-width: 220px; overflow-wrap: anywhere; }
.beside-table td { min-width: 110px; overflow-wrap: anywhere; }
.runs-compared h3.part { margin: 10px 0 6px; }
.run-top { flex-wrap: wrap !important; }
.confirm { align-items: center !important; }
.confirm button, .runs-top button { white-space: nowrap; }
.report-text { color: var(--body-text-color); line-height: 1.5; overflow-wrap: anywhere; max-width: 90ch; }
.report-text h1 { font-size: 19px; font-weight: 700; margin: 4px 0 8px; }
.report-text h2 { font-size: 16px; font-weight: 600; margin: 18px 0 6px; }
.report-text p, .report-text ul { margin: 6px 0; } .report-text ul { padding-left: 20px; list-style: disc; }
.report-text table { border-collapse: collapse; border: 0 !important; margin: 8px 0; font-size: 14px;
  display: block; overflow-x: auto;
  max-width: 100%; }
.report-text th, .report-text td { border: 1px solid var(--line) !important; padding: 4px 10px; text-align: left;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
.report-text code, .report-text pre { background: var(--soft); border-radius: 3px; padding: 1px 4px; font-size: 12px;
  font-family: var(--font-mono); white-space: pre-wrap; }
.report-text pre { padding: 8px 10px; } .report-text pre code { padding: 0; }
@media (max-width: 640px) {
  .confirm { flex-wrap: wrap !important; }
  .confirm > :first-child { flex-basis: 100% !important; }
  .run-top > .actions { flex-wrap: wrap !important; }
  .run-labels { flex-direction: column !important; align-items: stretch !important; }
  .ls-table th, .ls-table td { padding: 6px 7px; }
  .run-table { max-height: 52vh; }
  .run-table .wide, .checkpoint-table .wide { display: none; }
  .checkpoint-table td.acts { white-space: normal; }
  .checkpoint-table .acts button { margin: 2px 0 !important; padding: 3px 6px; }
  .checkpoint-table .tag { margin-left: 0; }
  .beside-table th[scope="row"] { min-width: 100px; }
  .beside-table th[scope="col"], .beside-table td { min-width: 88px; }
  .beside-table td { overflow-wrap: normal; }
  .run-table .narrow { display: inline; }
  .run-table td.name { min-width: 0; }
  .run-table td.eval_loss, .run-table th.eval_loss { text-align: right; }
}
"""
