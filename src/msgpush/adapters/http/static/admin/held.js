// The messages that a page holds: bounded by their number and their size, whatever comes.

const MOST = 2000;
const MOST_CHARACTERS = 16_000_000;

/** The newest messages, and those of them that pass a filter. */
export class Held {
  #all = [];
  #size = 0;
  #passes = () => true;
  #matching = [];
  #first = 0;

  get length() {
    return this.#matching.length;
  }

  /** The numbers of the first and the last that pass; a number stays a message's. */
  range() {
    return [this.#first, this.#first + this.#matching.length - 1];
  }

  at(n) {
    return this.#matching[n - this.#first];
  }

  push(message) {
    const entry = { message, text: JSON.stringify(message) };
    this.#all.push(entry);
    this.#size += entry.text.length;
    if (this.#passes(entry)) this.#matching.push(entry);
    // The newest stays, however long it is.
    while (this.#all.length > MOST || (this.#size > MOST_CHARACTERS && this.#all.length > 1)) {
      const gone = this.#all.shift();
      this.#size -= gone.text.length;
      if (this.#matching[0] !== gone) continue;
      this.#matching.shift();
      this.#first++;
    }
  }

  /** Show only those that pass, from here on. */
  filter(passes) {
    this.#passes = passes;
    this.#first += this.#matching.length;
    this.#matching = this.#all.filter(passes);
  }

  clear() {
    this.#first += this.#matching.length;
    this.#all = [];
    this.#matching = [];
    this.#size = 0;
  }
}
