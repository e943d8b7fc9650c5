// Charts that the browser keeps and is given new numbers for, so that zoom and hidden curves stay. Plotly draws them.
window.studio ??= {};

studio.charts = (() => {
  const INKS = 8; // colours of curves, --curve-1 to --curve-8
  const MAIN = 250; // heights in pixels
  const SMALL = 104;
  const GAP = 68;
  const BOTTOM = 40;
  const OPTIONS = {responsive: false, displaylogo: false, displayModeBar: false, doubleClick: 'reset+autosize'};
  const PLAIN = {paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)'};

  // A colour or font by its variable in the style sheets, light or dark as the page is now.
  const tones = (box) => (name) => getComputedStyle(box).getPropertyValue(name).trim();

  const axis = (tone, more) => ({
    gridcolor: tone('--line'),
    linecolor: tone('--line'),
    zeroline: false,
    tickfont: {size: 11},
    automargin: false,
    ...more,
  });

  // Draws now, for each new value, and whenever the page turns light or dark; `resized` says when it changed its size.
  function keep({element, watch}, draw, resized = () => true) {
    const box = element.querySelector('.chart');
    watch('value', () => draw(box));
    new ResizeObserver(() => resized(box) && draw(box)).observe(box);
    new MutationObserver(() => draw(box)).observe(document.body, {attributes: true, attributeFilter: ['class']});
    draw(box);
  }

  function trace(tone, part, suffix, legend) {
    const color = tone(`--curve-${((part.color_index - 1) % INKS) + 1}`);
    const plain = {
      x: part.x,
      y: part.y,
      name: part.name,
      type: 'scatter',
      mode: part.x.length < 3 ? 'lines+markers' : 'lines',
      connectgaps: false,
      xaxis: 'x' + suffix,
      yaxis: 'y' + suffix,
      showlegend: legend && part.kind !== 'pale',
      legendgroup: part.group,
      line: {color, width: 2},
      hovertemplate: part.percent ? '%{y:.1%}' : '%{y:.4~g}',
    };
    const kinds = {
      pale: {opacity: 0.32, line: {color, width: 1.2}},
      marks: {mode: 'lines+markers', marker: {size: 5, color}, line: {color, width: 2, dash: 'dot'}},
      best: {mode: 'markers', hoverinfo: 'skip', hovertemplate: null, marker: {symbol: 'star', size: 13, color}},
    };
    return {...plain, ...kinds[part.kind]};
  }

  // The curves of runs: one large panel above, small ones in columns below it.
  function curves(at) {
    let wide = 0;
    function draw(box) {
      const data = at.props.value;
      if (!data || !data.panels || !window.Plotly || !box.clientWidth) return;
      const tone = tones(box);
      const width = box.clientWidth;
      const columns = width < 460 ? 1 : width < 820 ? 2 : 3;
      const named = ({kind}) => kind !== 'pale';
      const legend = data.panels.flatMap((panel) => (panel.main ? panel.lines.filter(named) : []));
      const needed = legend.reduce((sum, {name}) => sum + 56 + 7 * name.length, 120); // with room for the caption
      const lines = Math.ceil(needed / Math.max(width - 64, 1));
      const top = lines > 1 ? 36 + 20 * lines : 30; // a legend of several lines stands above the caption
      const rows = Math.ceil(data.panels.filter((panel) => !panel.main).length / columns);
      const height = top + MAIN + rows * (GAP + SMALL) + BOTTOM;
      const inner = height - top - BOTTOM;
      const between = 52 / Math.max(width - 64, 1);
      const traces = [];
      const annotations = [];
      const layout = {
        ...PLAIN,
        uirevision: data.key,
        width,
        height,
        margin: {l: 52, r: 12, t: top, b: BOTTOM},
        hovermode: 'x unified',
        hoverlabel: {bgcolor: tone('--block-background-fill'), font: {color: tone('--body-text-color')}},
        font: {family: tone('--font'), color: tone('--body-text-color'), size: 12},
        annotations,
        legend: {orientation: 'h', x: 1, xanchor: 'right', y: 1 + (lines > 1 ? 18 / inner : 0), yanchor: 'bottom'},
      };
      const caption = (text, x, y, xanchor = 'left') => ({
        text,
        x,
        y,
        xref: 'paper',
        yref: 'paper',
        xanchor,
        yanchor: 'bottom',
        showarrow: false,
        font: {size: 12, color: tone('--body-text-color-subdued')},
      });
      // Where a panel stands, as shares of the whole: the large one for -1, else the small one of that number.
      const place = (number) => {
        if (number < 0) return {above: 1, below: 1 - MAIN / inner, left: 0, right: 1};
        const row = Math.floor(number / columns);
        const column = number % columns;
        const part = (1 - between * (columns - 1)) / columns;
        const start = MAIN + GAP + row * (SMALL + GAP);
        const left = column * (part + between);
        return {above: 1 - start / inner, below: 1 - (start + SMALL) / inner, left, right: left + part};
      };
      let small = 0;
      data.panels.forEach((panel, number) => {
        const suffix = number ? String(number + 1) : '';
        const {above, below, left, right} = place(panel.main ? -1 : small++);
        const title = {text: data.across, font: {size: 12}, standoff: 4};
        const percent = panel.unit === '%';
        const negative = panel.lines.some((part) => part.y.some((y) => y < 0));
        layout['xaxis' + suffix] = axis(tone, {
          domain: [left, right],
          anchor: 'y' + suffix,
          rangemode: 'tozero',
          nticks: panel.main ? 10 : 5,
          ...(number ? {matches: 'x'} : {}),
          title,
        });
        layout['yaxis' + suffix] = axis(tone, {
          domain: [Math.max(0, below), above],
          anchor: 'x' + suffix,
          type: panel.log ? 'log' : 'linear',
          nticks: panel.main ? 7 : 4,
          exponentformat: 'e',
          ...(percent ? {tickformat: '.0%'} : {}),
          ...(panel.log ? {} : {rangemode: negative ? 'normal' : 'tozero'}),
        });
        const measure = [panel.unit, panel.log && 'log scale'].filter(Boolean).join(', ');
        annotations.push(caption(measure ? `${panel.title} (${measure})` : panel.title, left, above));
        for (const part of panel.lines) traces.push(trace(tone, {...part, percent}, suffix, panel.main));
        if (panel.main && !panel.lines.length) {
          traces.push({x: [], y: [], xaxis: 'x', yaxis: 'y', showlegend: false});
          annotations.push(caption(data.empty, 0.5, 1 - MAIN / 2 / inner, 'center'));
        }
      });
      box.style.height = height + 'px';
      window.Plotly.react(box, traces, layout, OPTIONS);
    }
    keep(at, draw, (box) => {
      const before = wide;
      wide = box.clientWidth;
      return wide !== before;
    });
  }

  // The limit is dragged by its line: it follows the pointer, and the server hears where it was let go.
  function drag(box, at) {
    const REACH = 10; // pixels to both sides of the line
    const axis = () => box._fullLayout?.xaxis;
    const tokens = (event) => axis().p2d(event.clientX - box.getBoundingClientRect().left - axis()._offset);
    const line = () => (at.props.value?.cut ? axis()?.d2p(at.props.value.cut.at) + axis()?._offset : NaN);
    const near = (event) => Math.abs(event.clientX - box.getBoundingClientRect().left - line()) < REACH;
    let to = null;
    const move = (event) => {
      to = Math.max(1, Math.round(tokens(event)));
      const number = box.layout.shapes.length - 1;
      window.Plotly.relayout(box, {[`shapes[${number}].x0`]: to + 0.5, [`shapes[${number}].x1`]: to + 0.5});
    };
    box.addEventListener('pointermove', (event) => {
      if (to === null) box.classList.toggle('on-limit', near(event));
    });
    box.addEventListener(
      'pointerdown',
      (event) => {
        if (event.button || !near(event)) return;
        event.preventDefault();
        event.stopPropagation();
        to = at.props.value.cut.at - 0.5;
        const end = () => {
          removeEventListener('pointermove', move);
          at.trigger('click', {act: 'limit', value: to});
          to = null;
        };
        addEventListener('pointermove', move);
        addEventListener('pointerup', end, {once: true});
      },
      true,
    );
    // Plotly zooms by mouse events of its own
    box.addEventListener('mousedown', (event) => near(event) && event.stopPropagation(), true);
  }

  // Rows by their number of tokens, percentiles above the bars, and the limit.
  function lengths(at) {
    drag(at.element.querySelector('.chart'), at);
    keep(at, (box) => {
      const data = at.props.value;
      if (!data || !data.words) return;
      box.setAttribute('aria-label', data.words);
      if (!window.Plotly || !box.clientWidth) return;
      const tone = tones(box);
      const width = box.clientWidth;
      const [first, last] = data.range;
      const inside = (x) => Math.min(Math.max(x, first), last);
      const upright = (x, line) => ({type: 'line', x0: x, x1: x, y0: 0, y1: 1, yref: 'paper', line});
      const label = (mark, height, ink) => ({
        text: mark.label,
        x: inside(mark.at),
        y: 1,
        yref: 'paper',
        yshift: height,
        yanchor: 'middle',
        xanchor: inside(mark.at) > (first + last) / 2 ? 'right' : 'left',
        showarrow: false,
        font: {size: 12, color: tone(ink)},
      });
      const bars = {
        type: 'bar',
        x: data.x,
        y: data.rows,
        width: data.width,
        customdata: data.labels,
        hovertemplate: '%{customdata}<extra></extra>',
        marker: {color: data.over.map((over) => tone(over ? '--ls-lost' : '--curve-1'))},
      };
      const quiet = {color: tone('--quiet'), width: 1, dash: 'dot'};
      const cut = upright(data.cut.at, {color: tone('--ls-cut'), width: 2});
      const across = {range: [first, last], title: {text: 'tokens per row', font: {size: 12}}, separatethousands: true};
      const up = {rangemode: 'tozero', fixedrange: true, title: {text: 'rows', font: {size: 12}}, nticks: 5};
      const layout = {
        ...PLAIN,
        uirevision: data.key,
        width,
        height: 260,
        margin: {l: 52, r: 12, t: 72, b: 40},
        bargap: 0,
        showlegend: false,
        hovermode: 'closest',
        dragmode: width < 560 ? false : 'zoom',
        hoverlabel: {
          bgcolor: tone('--block-background-fill'),
          bordercolor: tone('--line'),
          font: {color: tone('--body-text-color')},
        },
        font: {family: tone('--font'), color: tone('--body-text-color'), size: 12},
        xaxis: axis(tone, {...across, automargin: true}),
        yaxis: axis(tone, {...up, automargin: true}),
        shapes: [
          ...data.marks.map((mark) => upright(mark.at, quiet)),
          ...(data.cut.at === inside(data.cut.at) ? [cut] : []),
        ],
        annotations: [
          ...data.marks.map((mark, row) => label(mark, 8 + 17 * row, '--body-text-color-subdued')),
          label(data.cut, 60, '--ls-cut'),
        ],
      };
      window.Plotly.react(box, [bars], layout, OPTIONS);
    });
  }

  return {curves, lengths};
})();
