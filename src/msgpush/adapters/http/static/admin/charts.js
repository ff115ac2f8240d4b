// Charts of lines over time. Each keeps a bounded number of points, and is drawn at most once a frame.
import { now } from "./api.js";
import { h, newId } from "./dom.js";
import { clock, figure, moment, t } from "./i18n.js";
import { colour, onScheme } from "./theme.js";

const HEIGHT = 150;
const LEAST = 60; // seconds that a chart shows at least
const INCREMENTS = [
  5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400, 172_800, 432_000,
];
const ROWS = 60; // of the table that says the same in words

const waiting = new Set();
let frame = 0;
function soon(chart) {
  waiting.add(chart);
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    for (const each of waiting) each.draw();
    waiting.clear();
  });
}

/** Numbers over time, the newest `capacity` of them, in arrays that are made once. */
export class Ring {
  #columns;
  #start = 0;
  length = 0;

  constructor(series, capacity) {
    this.capacity = capacity;
    // Twice as long, so that what is held is always one piece.
    this.#columns = Array.from({ length: series + 1 }, () => new Float64Array(2 * capacity));
  }

  push(time, values) {
    if (this.#start + this.length === 2 * this.capacity) {
      for (const column of this.#columns) column.copyWithin(0, this.#start, this.#start + this.length);
      this.#start = 0;
    }
    const at = this.#start + this.length;
    [time, ...values].forEach((value, i) => (this.#columns[i][at] = value ?? NaN));
    if (this.length < this.capacity) this.length++;
    else this.#start++;
  }

  /** Time and each series, as views of what is held. */
  columns() {
    return this.#columns.map((column) => column.subarray(this.#start, this.#start + this.length));
  }
}

/**
 * A chart with a heading, its newest value, and a table that says the same.
 * @param {{title: string, unit: string, series: {label: string, colour: string}[], dates?: boolean, data?: boolean}} given
 *   `dates`: it covers days; `data`: the labels are others' words
 */
export class Chart {
  #given;
  #plot = null;
  #columns = null;
  #box = h("div", { class: "plot", "aria-hidden": "true" });
  #value = h("p", { class: "value" });
  #words = h("p", { class: "away" });
  #table = h("table", {});
  #details;
  #resized;
  #off = new AbortController();
  #described = 0;

  constructor(given) {
    this.#given = given;
    const id = newId("chart");
    this.#details = h(
      "details",
      { ontoggle: () => this.#tell() },
      h("summary", {}, t("chart.table")),
      h("div", { class: "table", tabindex: "0", role: "group", "aria-label": given.title }, this.#table),
    );
    this.element = h(
      "figure",
      { class: "card chart", "aria-labelledby": id },
      h("div", { class: "head" }, h("h2", { id }, given.title), this.#value),
      h(
        "ul",
        { class: "legend" },
        given.series.length > 1 && given.series.map((s) => h("li", { class: `mark ${s.colour}` }, s.data ?? s.label)),
      ),
      this.#box,
      this.#words,
      this.#details,
    );
    this.#resized = new ResizeObserver(() => soon(this));
    this.#resized.observe(this.#box);
    onScheme(() => this.#again(), this.#off.signal);
  }

  /** Show these: seconds since 1970, then each series' values; and what stands beside the title. */
  show(columns, ...value) {
    this.#columns = columns;
    this.#value.replaceChildren(...value);
    soon(this);
  }

  draw() {
    const width = this.#box.clientWidth;
    if (!this.#columns || !width || !this.#box.isConnected) return;
    if (!this.#plot) this.#plot = new globalThis.uPlot(this.#options(width), this.#columns, this.#box);
    else {
      if (this.#plot.width !== width) this.#plot.setSize({ width, height: HEIGHT });
      this.#plot.setData(this.#columns);
    }
    this.#tell();
  }

  close() {
    this.#off.abort();
    this.#resized.disconnect();
    waiting.delete(this);
    this.#plot?.destroy();
    this.#plot = null;
  }

  #again() {
    this.#plot?.destroy();
    this.#plot = null;
    soon(this);
  }

  #options(width) {
    const quiet = colour("quiet");
    const line = colour("line");
    const axis = {
      stroke: quiet,
      font: "12px system-ui, sans-serif",
      ticks: { show: false },
      grid: { stroke: line, width: 1 },
    };
    const { series, dates } = this.#given;
    return {
      width,
      height: HEIGHT,
      padding: [8, 8, 0, 0],
      legend: { show: false },
      cursor: { show: false },
      scales: {
        x: { range: (plot) => span(plot.data[0]) },
        y: { range: (_, least, most) => [0, nice(most)] },
      },
      axes: [
        {
          ...axis,
          grid: { show: false },
          size: 28,
          space: 90,
          incrs: INCREMENTS,
          values: (plot, times) => times.map((at) => (fits(plot, at, dates) ? brief(at, dates) : null)),
        },
        { ...axis, size: 52, space: 36, values: (_, values) => values.map(figure) },
      ],
      series: [
        {},
        ...series.map((s) => ({
          stroke: colour(s.colour),
          width: 2,
          // A line needs two: one alone is a point.
          points: { show: true, size: 6, filter: (plot, index) => alone(plot.data[index]) },
          spanGaps: true,
          fill: series.length === 1 ? colour(`${s.colour}-soft`) : undefined,
        })),
      ],
    };
  }

  /** The same in words: a sentence, now and then, and the table while it is open. */
  #tell() {
    const [times, ...columns] = this.#columns ?? [];
    if (!times?.length) return;
    const { title, unit, series, dates } = this.#given;
    const said = performance.now();
    if (said - this.#described > 10_000 || !this.#described) {
      this.#described = said;
      this.#words.textContent = series
        .map((s, i) => t("chart.words", { title, label: s.label, unit, ...extremes(columns[i]) }))
        .join(" ");
    }
    if (!this.#details.open) return;
    const at = (seconds) => (dates ? moment : clock)(new Date(seconds * 1000));
    const rows = [];
    for (let i = times.length - 1; i >= 0 && rows.length < ROWS; i--)
      rows.push(
        h(
          "tr",
          {},
          h("th", { scope: "row" }, at(times[i])),
          columns.map((c) => h("td", { class: "number" }, figure(c[i]))),
        ),
      );
    this.#table.replaceChildren(
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, t("chart.time")),
          series.map((s) =>
            h("th", { scope: "col", class: "number" }, s.data?.cloneNode(true) ?? s.label, ` (${unit})`),
          ),
        ),
      ),
      h("tbody", {}, rows),
    );
  }
}

/** From when to when a chart of these times is; of one without any, until now. */
function span(times) {
  const last = times.at(-1) ?? now() / 1000;
  return [Math.min(times[0] ?? last, last - LEAST), last];
}

/** Where the only value of a series is, if it has one alone. */
function alone(values) {
  const at = [];
  for (let i = 0; i < values.length && at.length < 2; i++) if (values[i] === values[i] && values[i] !== null) at.push(i);
  return at.length === 1 ? at : [];
}

function extremes(values) {
  let least = Infinity;
  let most = -Infinity;
  for (const value of values)
    if (value === value && value !== null) {
      least = Math.min(least, value);
      most = Math.max(most, value);
    }
  return {
    now: figure(values[values.length - 1]),
    least: figure(least === Infinity ? null : least),
    most: figure(most === -Infinity ? null : most),
  };
}

/** Whether a time can stand below its place, and isn't cut off at the right. */
const fits = (plot, at, dates) =>
  plot.valToPos(at, "x") + (dates === "days" ? 36 : 26) < plot.bbox.width / devicePixelRatio + 8;

/** A round number not below this one, so that the axis doesn't jump with each point. */
function nice(most) {
  if (!(most > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * unit >= most * 1.05) * unit || 10 * unit;
}

const brief = (at, dates) => {
  const whole = new Date(at * 1000);
  const two = (n) => String(n).padStart(2, "0");
  const time = `${two(whole.getHours())}:${two(whole.getMinutes())}`;
  if (!dates) return `${time}:${two(whole.getSeconds())}`;
  return dates === "days" ? `${two(whole.getMonth() + 1)}-${two(whole.getDate())} ${time}` : time;
};
