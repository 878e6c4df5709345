// Charts out of the figures that the server has, and a word where it does not answer. All pages work without.
"use strict";
(() => {
  const KINDS = {
    calls: { lines: [["calls", "calls", 1]], unit: count, bars: true },
    latency: { lines: [["p50", "median", 1], ["p95", "95th percentile", 2], ["p99", "99th percentile", 3]], unit: ms },
    errors: { lines: [["errors", "failed", 4]], unit: percent, of: "calls" },
    confidence: { lines: [["confidence", "median", 1], ["unsure", "a tenth is below", 2]], unit: score, range: [0, 1] },
  };

  function count(v) { return Math.round(v).toLocaleString("en").replaceAll(",", "\u202f"); }
  function ms(v) { return v === 0 ? "0" : v >= 1000 ? `${(v / 1000).toPrecision(3)} s` : v < 1 ? `${Math.round(v * 1000)} µs` : `${v < 10 ? v.toFixed(1) : Math.round(v)} ms`; }
  function percent(v) { return v === 0 ? "0 %" : `${Number((100 * v).toPrecision(2))} %`; }
  function score(v) { return v.toFixed(2); }
  function token(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
  function colour(n) { return token(["", "--line-1", "--line-2", "--line-3", "--bad"][n]); }

  function columns(kind, figures) {
    const rows = kind.lines.map(([key]) => kind.of
      ? figures[key].map((v, i) => figures[kind.of][i] ? v / figures[kind.of][i] : null)
      : figures[key]);
    return [figures.at, ...rows];
  }

  function axis(more) {
    return {
      stroke: token("--soft"), font: "11.5px system-ui", grid: { stroke: token("--grid"), width: 1 },
      ticks: { show: false }, ...more,
    };
  }

  function options(plot, kind, name) {
    const read = plot.parentElement.querySelector(".read");
    const days = Number(plot.dataset.hours || 24) > 48;
    return {
      width: plot.clientWidth, height: plot.clientHeight, legend: { show: false }, padding: [8, 20, 0, 0],
      cursor: { y: false, points: { size: 7 } },
      scales: { x: { time: true, range: (_, low, high) => [low - 1800, high + 1800] }, y: { range: kind.range ? () => kind.range : (_, low, high) => [0, high > 0 ? high * 1.15 : 1] } },
      axes: [
        axis({ space: 70, size: 26, values: (_, at) => at.map(t => stamp(t, days)) }),
        axis({ size: 58, values: (_, values) => values.map(kind.unit) }),
      ],
      series: [{}, ...kind.lines.map(([, label, n]) => ({
        label, stroke: colour(n), width: 2, spanGaps: false, points: { show: !kind.bars && plot.dataset.few === "yes", size: 6, fill: colour(n) },
        ...(kind.bars ? { paths: uPlot.paths.bars({ size: [0.72, 40], radius: 0.15 }), fill: colour(n), width: 0 } : {}),
        ...(name === "errors" ? { fill: token("--bad-bg") } : {}),
      }))],
      hooks: { setCursor: [u => { read.textContent = reading(u, kind); }] },
    };
  }

  function stamp(t, days) {
    const d = new Date(t * 1000);
    const clock = d.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
    return days ? d.toLocaleDateString("en-GB", { day: "numeric", month: "short" }) : clock;
  }

  function reading(u, kind) {
    const i = u.cursor.idx;
    if (i === null || i === undefined) return "";
    const words = kind.lines.map(([, label], n) => {
      const v = u.data[n + 1][i];
      return v === null || v === undefined ? null : `${label} ${kind.unit(v)}`;
    }).filter(Boolean);
    return `${stamp(u.data[0][i], true)} ${stamp(u.data[0][i], false)}: ${words.join(", ") || "nothing is known"}`;
  }

  const charts = new Map();
  async function figuresOf(url, asked) {
    if (!asked.has(url)) {
      asked.set(url, fetch(url, { headers: { Accept: "application/json" } }).then(r => r.ok ? r.json() : null).catch(() => null));
    }
    return asked.get(url);
  }

  async function draw(anew) {
    const asked = new Map();
    for (const [plot, chart] of charts) {
      if (!plot.isConnected) { chart.destroy(); charts.delete(plot); }
    }
    for (const plot of document.querySelectorAll(".plot[data-series]")) {
      const kind = KINDS[plot.dataset.chart];
      const figures = await figuresOf(plot.dataset.series, asked);
      if (!figures || !plot.isConnected) continue;
      plot.dataset.few = figures.calls.filter(Boolean).length < 8 ? "yes" : "no";
      const data = columns(kind, figures);
      const known = charts.get(plot);
      if (known && !anew) { known.setData(data); continue; }
      if (known) known.destroy();
      charts.set(plot, new uPlot(options(plot, kind, plot.dataset.chart), data, plot));
      plot.dataset.drawn = "yes";
    }
  }

  function fit() {
    for (const [plot, chart] of charts) chart.setSize({ width: plot.clientWidth, height: plot.clientHeight });
  }

  function stale(is) {
    let box = document.getElementById("stale");
    if (is && !box) {
      box = document.createElement("p");
      box.id = "stale";
      box.className = "stale";
      box.setAttribute("role", "status");
      box.textContent = "The server does not answer; what is shown may be old.";
      document.body.append(box);
    } else if (!is && box) box.remove();
  }

  addEventListener("DOMContentLoaded", () => {
    if (document.querySelector(".plot[data-series]")) {
      draw(false);
      setInterval(() => { if (!document.hidden) draw(false); }, 10000);
      new ResizeObserver(fit).observe(document.querySelector("main"));
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(true));
    }
    // Nothing is asked for while nobody looks.
    document.addEventListener("htmx:before:request", e => { if (document.hidden) e.preventDefault(); });
    document.addEventListener("htmx:after:request", () => stale(false));
    document.addEventListener("htmx:error", () => stale(true));
    // One order is open at a time, and Escape closes it.
    document.addEventListener("toggle", e => {
      if (!(e.target instanceof HTMLDetailsElement) || !e.target.open || !e.target.matches(".order")) return;
      for (const other of document.querySelectorAll(".order[open]")) if (other !== e.target) other.open = false;
    }, true);
    document.addEventListener("keydown", e => {
      const open = e.key === "Escape" && document.querySelector(".order[open]");
      if (open) { open.open = false; open.querySelector("summary").focus(); }
    });
  });
})();
