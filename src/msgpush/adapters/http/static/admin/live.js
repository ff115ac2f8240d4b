// What the instances report, asked for every two seconds, and the rates that follow from it.
import { ask, now } from "./api.js";
import { Ring } from "./charts.js";

const EVERY = 2000;
const SILENT = 5000; // ms without a report, of which there is one each second
const KEPT = 300; // points: ten minutes
const COUNTERS = ["published", "failed", "delivered", "acknowledged", "dead"];

/** The instances while a view looks at them. `show` is called with each report, `refuse` with each problem. */
export class Live {
  #before = new Map();
  #timer;
  #over = false;
  messages = new Ring(2, KEPT); // published and failed a second
  deliveries = new Ring(2, KEPT); // delivered, acknowledged a second
  latency = new Ring(2, KEPT); // p50, p99 of the slowest instance
  streams = new Ring(2, KEPT); // live, behind

  constructor(show, refuse, signal) {
    this.show = show;
    this.refuse = refuse;
    this.signal = signal;
    signal.addEventListener("abort", () => {
      this.#over = true;
      clearTimeout(this.#timer);
    });
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.#soon(0), {
      signal,
    });
    this.#look();
  }

  /** Look at once: what was refused may be allowed by now. */
  again() {
    this.#soon(0);
  }

  #soon(milliseconds) {
    clearTimeout(this.#timer);
    if (!this.#over) this.#timer = setTimeout(() => this.#look(), milliseconds);
  }

  async #look() {
    // A page that nobody sees asks for nothing.
    if (document.visibilityState === "hidden") return;
    try {
      const { instances } = await ask("api/v1/instances", { signal: this.signal });
      if (!this.#over) this.#take(instances);
    } catch (problem) {
      if (this.#over) return;
      this.refuse(problem);
      // What is refused stays so until somebody else has signed in.
      if ([401, 403].includes(problem.status)) return;
    }
    this.#soon(EVERY);
  }

  #take(instances) {
    const total = Object.fromEntries(COUNTERS.map((name) => [name, 0]));
    let known = false;
    for (const each of instances) {
      const before = this.#before.get(each.node);
      // By this page's own watch: clocks of instances may differ.
      each.heard = before?.at === each.at ? before.heard : performance.now();
      each.silent = performance.now() - each.heard > SILENT;
      const seconds = before && (Date.parse(each.at) - Date.parse(before.at)) / 1000;
      // An instance that has not reported anew goes on as it was, for a while; one that was started anew begins at
      // nothing.
      if (seconds > 0 && each.started_at === before.started_at)
        each.rates = Object.fromEntries(
          COUNTERS.map((name) => [name, Math.max(0, each[name] - before[name]) / seconds]),
        );
      else each.rates = seconds === 0 && !each.silent ? before.rates : null;
      if (!each.rates) continue;
      known = true;
      for (const name of COUNTERS) total[name] += each.rates[name];
    }
    this.#before = new Map(instances.map((each) => [each.node, each]));
    const slowest = (name) => instances.reduce((most, each) => Math.max(most, each.latency_ms[name] ?? -1), -1);
    const sum = (state) => instances.reduce((all, each) => all + each.streams[state], 0);
    const at = now() / 1000;
    const latency = ["p50", "p99"].map((name) => (slowest(name) < 0 ? null : slowest(name)));
    const streams = [sum("live"), sum("behind")];
    if (known) {
      this.messages.push(at, [total.published, total.failed]);
      this.deliveries.push(at, [total.delivered, total.acknowledged]);
    }
    this.latency.push(at, latency);
    this.streams.push(at, streams);
    this.show({ instances, rates: known ? total : null, latency, streams });
  }
}
