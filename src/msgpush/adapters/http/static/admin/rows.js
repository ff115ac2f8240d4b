// A list of any length of which only what can be seen is made: a listbox, by mouse and by keyboard.
import { h, newId } from "./dom.js";

// px; those of .option in views.css: where it is narrow, a row has two lines.
const TALL = matchMedia("(max-width: 47.99rem)");
const height = () => (TALL.matches ? 56 : 40);
const SPARE = 4;

/**
 * The newest stands first. Rows have numbers that go up and stay theirs; row n is `at(n)`, those held are `first` to `last`.
 * @param {{label: string, at: (n: number) => any, range: () => [number, number], draw: (element: HTMLElement, row: any) => void,
 *   chosen: (n: number) => void}} given
 */
export class Rows {
  #given;
  #id = newId("list");
  #pool = [];
  #chosen = null;
  #space = h("div", { class: "space", role: "presentation" });
  #frame = 0;
  #late = 0;
  #newest = -1;
  #resized;

  constructor(given) {
    this.#given = given;
    this.element = h(
      "div",
      {
        class: "options",
        role: "listbox",
        tabindex: "0",
        "aria-label": given.label,
        id: this.#id,
        onscroll: () => this.soon(),
        onkeydown: (event) => this.#key(event),
        onclick: (event) => this.#click(event),
      },
      this.#space,
    );
    this.#resized = new ResizeObserver(() => this.soon());
    this.#resized.observe(this.element);
  }

  /** Draw anew what can be seen, with the next frame; or where others come all the time, a few times a second. */
  soon(most = 0) {
    if (most) {
      this.#late ||= setTimeout(() => {
        this.#late = 0;
        this.soon();
      }, most);
      return;
    }
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  get atTop() {
    return this.element.scrollTop < height();
  }

  top() {
    this.element.scrollTop = 0;
  }

  choose(n) {
    this.#chosen = n;
    this.soon();
    this.#given.chosen(n);
  }

  forget() {
    this.#chosen = null;
    this.#newest = -1;
    this.element.scrollTop = 0;
    this.soon();
  }

  close() {
    this.#resized.disconnect();
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#late);
  }

  #draw() {
    const [first, last] = this.#given.range();
    const size = last - first + 1;
    const tall = height();
    this.#space.style.height = `${size * tall}px`;
    // Who has scrolled down stays where they are when others come above.
    if (this.#newest >= 0 && last > this.#newest && !this.atTop) this.element.scrollTop += (last - this.#newest) * tall;
    this.#newest = last;
    const { scrollTop, clientHeight } = this.element;
    const from = Math.max(0, Math.floor(scrollTop / tall) - SPARE);
    const until = Math.min(size, Math.ceil((scrollTop + clientHeight) / tall) + SPARE);
    while (this.#pool.length < until - from) this.#make();
    this.#pool.forEach((element, i) => {
      const n = last - from - i;
      element.hidden = from + i >= until;
      if (element.hidden) return;
      element.style.transform = `translateY(${(from + i) * tall}px)`;
      element.setAttribute("aria-posinset", from + i + 1);
      element.setAttribute("aria-setsize", size);
      element.setAttribute("aria-selected", String(n === this.#chosen));
      if (element.row !== n) {
        element.row = n;
        this.#given.draw(element, this.#given.at(n));
      }
    });
    const shown = this.#pool.find((element) => !element.hidden && element.row === this.#chosen);
    if (shown) this.element.setAttribute("aria-activedescendant", shown.id);
    else this.element.removeAttribute("aria-activedescendant");
  }

  #make() {
    const element = h("div", { class: "option", role: "option", id: `${this.#id}-${this.#pool.length}` });
    this.#pool.push(element);
    this.#space.append(element);
  }

  #click(event) {
    const element = event.target.closest(".option");
    if (element) this.choose(element.row);
  }

  #key(event) {
    const [first, last] = this.#given.range();
    if (last < first) return;
    const tall = height();
    const page = Math.max(1, Math.floor(this.element.clientHeight / tall) - 1);
    const steps = { ArrowDown: -1, ArrowUp: 1, PageDown: -page, PageUp: page, Home: Infinity, End: -Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const from = this.#chosen ?? last + 1;
    const n = Math.min(last, Math.max(first, from + steps[event.key]));
    const y = (last - n) * tall;
    const { scrollTop, clientHeight } = this.element;
    if (y < scrollTop) this.element.scrollTop = y;
    else if (y + tall > scrollTop + clientHeight) this.element.scrollTop = y + tall - clientHeight;
    this.choose(n);
  }
}
