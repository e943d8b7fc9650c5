"""How the evaluate tab looks: metrics, confusion matrices, table of rows. Rules only."""

CSS = """
.eval-metrics { margin-top: 6px; max-height: none; }
.eval-metrics th[scope="row"] small, .eval-metrics td small { display: block; color: var(--body-text-color-subdued);
  font-size: 12px; font-weight: 400; }
.eval-metrics th[scope="row"] { min-width: 220px; max-width: 360px; font-weight: 600; }
.eval-metrics td b { font-weight: 600; white-space: nowrap; } .eval-metrics td small { white-space: nowrap; }
.eval-metrics td.verdict { font-size: 14px; margin: 0; min-width: 150px; }
.eval-confusions { display: flex; flex-wrap: wrap; gap: 12px; }
.eval-confusions .ls-table { flex: 0 1 auto; max-width: 100%; }
table.eval-confusion { width: auto !important; }
.eval-confusion caption { caption-side: top; text-align: left; padding: 6px 10px; font-weight: 600;
  color: var(--body-text-color); }
.eval-confusion thead td { font-size: 12px; color: var(--body-text-color-subdued); white-space: nowrap; }
.eval-confusion th[scope="row"] { position: static; background: none; }
.eval-confusion tbody td { text-align: right; min-width: 64px; }
.eval-confusion td.good { background: color-mix(in srgb, var(--good) calc(var(--share) * 0.35), transparent); }
.eval-confusion td.bad { background: color-mix(in srgb, var(--bad) calc(var(--share) * 0.35), transparent); }
#evaluation-results h3.part, #evaluation-rows h3.part { margin-top: 14px; }
.eval-chips { display: flex; flex-wrap: wrap; gap: 6px; margin: 6px 0; }
.eval-chips button { border: 1px solid var(--line); border-radius: 14px; padding: 3px 12px; font-size: 13px;
  background: var(--block-background-fill); color: var(--body-text-color); cursor: pointer; }
.eval-chips button[aria-pressed="true"] { border-color: var(--busy); background: var(--soft); font-weight: 600; }
.eval-controls { display: flex; flex-wrap: wrap; gap: 8px 18px; margin: 0 0 8px; font-size: 13px;
  color: var(--body-text-color-subdued); }
.eval-controls label { display: inline-flex; align-items: center; gap: 6px; }
.eval-controls select, .eval-controls input { border: 1px solid var(--line); border-radius: 6px; padding: 3px 8px;
  background: var(--input-background-fill); color: var(--body-text-color); font-size: 13px; max-width: 260px; }
.eval-chips button, #evaluation-rows .run-pager button { margin: 0 !important; }
.eval-rows { max-height: none; }
.eval-rows td.asked { min-width: 220px; max-width: 420px; overflow-wrap: anywhere; }
.eval-rows td.asked summary { cursor: pointer; } .eval-rows .ls-talk { margin-top: 8px; }
.eval-rows td.said { min-width: 150px; overflow-wrap: anywhere; }
.eval-rows td.said i { font-style: normal; font-weight: 700; }
.eval-rows td.good i { color: var(--good); } .eval-rows td.bad i { color: var(--bad); }
@media (max-width: 640px) {
  .eval-metrics thead { display: none; }
  .eval-metrics tr { display: grid; grid-template-columns: 1fr 1fr 1.2fr; padding: 6px 4px;
    border-bottom: 1px solid var(--line) !important; }
  .eval-metrics td, .eval-metrics th[scope="row"] { border: 0 !important; padding: 2px 6px !important; min-width: 0;
    max-width: none; }
  .eval-metrics td small { white-space: normal; }
  .eval-metrics th[scope="row"], .eval-metrics td.verdict { grid-column: 1 / -1; }
  .eval-metrics td[data-label]::before { content: attr(data-label); display: block; font-size: 12px;
    color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
  .eval-controls label, .eval-controls select, .eval-controls input { width: 100%; max-width: none; }
  .eval-rows thead { display: none; }
  .eval-rows tr { display: block; border-bottom: 1px solid var(--line) !important; padding: 6px 0; }
  .eval-rows td { display: flex; gap: 10px; border: 0 !important; padding: 2px 10px !important;
    max-width: none !important; }
  .eval-rows td::before { content: attr(data-label); flex: 0 0 76px; font-size: 12px; line-height: 21px;
    overflow-wrap: anywhere; color: var(--body-text-color-subdued); }
}
.eval-rows td small { color: var(--body-text-color-subdued); font-size: 12px; }
"""
