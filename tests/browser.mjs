// A browser as far as the script of the pages asks for one: a page that was served, a clock
// that is moved by hand, and a server that answers what it is told to.
import { readFileSync } from "node:fs";
import { createContext, runInContext } from "node:vm";

const SCRIPT = new URL("../liteq/web/static/live.js", import.meta.url);
const EMPTY = new Set(["img", "input", "link", "meta"]);
const TAG = /<\/(?<end>\w+)>|<(?<tag>\w+)(?<rest>(?:\s+[\w-]+(?:="[^"]*")?)*)\s*>/g;

class Element {
  children = [];
  scrollLeft = 0;
  handlers = {};

  constructor(tag, attributes, parent) {
    Object.assign(this, { tag, attributes, parent });
    this.classes = new Set((attributes.class ?? "").split(" "));
    this.classList = {
      toggle: (name, on) => (on ? this.classes.add(name) : this.classes.delete(name)),
    };
    this.dataset = {};
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("data-")) this.dataset[name.slice(5)] = value;
    }
    this.type = attributes.type;
    this.value = this.defaultValue = attributes.value ?? "";
    this.checked = this.defaultChecked = "checked" in attributes;
    this.open = "open" in attributes;
    this.hidden = "hidden" in attributes;
  }

  matches(selectors) {
    return selectors.split(", ").some((one) => {
      const [own, ...above] = one.split(" ").reverse();
      let at = fits(this, own) ? this : null;
      for (const outer of above) {
        do at = at?.parent ?? null;
        while (at !== null && !fits(at, outer));
      }
      return at !== null;
    });
  }

  querySelectorAll(selectors) {
    return this.children.flatMap((one) => [
      ...(one.matches(selectors) ? [one] : []),
      ...one.querySelectorAll(selectors),
    ]);
  }

  querySelector(selectors) {
    return this.querySelectorAll(selectors)[0] ?? null;
  }

  replaceWith(other) {
    this.parent.children[this.parent.children.indexOf(this)] = other;
    other.parent = this.parent;
  }

  setAttribute(name, value) {
    this.attributes[name] = value;
  }

  getAttribute(name) {
    return this.attributes[name] ?? null;
  }

  addEventListener(kind, handler) {
    this.handlers[kind] = handler;
  }
}

// Whether an element is as a part of a selector says, such as `main[data-live]`.
function fits(element, part) {
  const [, tag, name, key, value] = part.match(
    /^(\w*)(?:\.(\w+))?(?:\[([\w-]+)(?:="(\w+)")?\])?$/,
  );
  return (
    (tag === "" || element.tag === tag) &&
    (name === undefined || element.classes.has(name)) &&
    (key === undefined || key in element.attributes) &&
    (value === undefined || element.attributes[key] === value)
  );
}

function parse(html) {
  const root = new Element("", {}, null);
  let at = root;
  for (const { 0: all, index, groups } of html.matchAll(TAG)) {
    const after = index + all.length;
    if (groups.tag !== undefined) {
      const made = new Element(groups.tag, attributesIn(groups.rest), at);
      made.begin = after;
      at.children.push(made);
      if (!EMPTY.has(made.tag)) at = made;
    } else {
      while (at.tag !== groups.end) at = at.parent; // an <option> may have no end of its own
      at.innerHTML = html.slice(at.begin, index);
      at = at.parent;
    }
  }
  return root;
}

function attributesIn(text) {
  const found = [...text.matchAll(/([\w-]+)(?:="([^"]*)")?/g)];
  return Object.fromEntries(found.map(([, name, value = ""]) => [name, value]));
}

export class Browser {
  now = 0; // ms
  asked = []; // the addresses, with when each was asked for
  handlers = {};
  timers = new Map();
  marked = false; // some of the text
  status = 200; // of an answer
  number = 0; // of the timer that was set last

  // `answer(address)`, which may be replaced, gives the text of an answer, or null if there is
  // none. `kept` is what the browser keeps, if it keeps anything.
  constructor(html, { address = "http://localhost/", kept = {}, keeps = true } = {}) {
    this.address = address;
    this.answer = async () => html;
    const root = parse(html);
    this.document = Object.assign(root, {
      activeElement: null,
      hidden: false,
      getElementById: (id) => root.querySelector(`[id="${id}"]`),
      getSelection: () => ({ isCollapsed: !this.marked }),
      addEventListener: (kind, handler) => (this.handlers[kind] = handler),
    });
    const storage = {
      getItem: (name) => kept[name] ?? null,
      setItem: (name, value) => (kept[name] = value),
    };
    const world = {
      URL,
      document: this.document,
      DOMParser: class {
        parseFromString = parse;
      },
      history: { replaceState: (_state, _title, url) => (this.address = String(url)) },
      location: { href: address },
      performance: { now: () => this.now },
      fetch: (url) => this.#fetch(url),
      setTimeout: (call, ms) => this.#set(call, ms),
      clearTimeout: (number) => this.timers.delete(number),
    };
    Object.defineProperty(world, "localStorage", {
      get() {
        if (keeps) return storage;
        throw new Error("this browser keeps nothing");
      },
    });
    runInContext(readFileSync(SCRIPT, "utf8"), createContext(world));
  }

  get main() {
    return this.document.querySelector("main");
  }

  get button() {
    return this.document.getElementById("live");
  }

  // Let time pass, and all happen that was to happen by then.
  async pass(ms) {
    const end = this.now + ms;
    for (;;) {
      const due = [...this.timers].sort(([, one], [, other]) => one.at - other.at)[0];
      if (due === undefined || due[1].at > end) break;
      this.now = due[1].at;
      this.timers.delete(due[0]);
      due[1].call();
      await settled();
    }
    this.now = end;
    await settled();
  }

  // Have something happen to an element, as if the reader had done it.
  does(kind, target, more = {}) {
    const event = { target, prevented: false, ...more };
    event.preventDefault = () => (event.prevented = true);
    target.handlers[kind]?.(event);
    this.handlers[kind]?.(event);
    return event;
  }

  #set(call, ms) {
    this.timers.set(++this.number, { call, at: this.now + ms });
    return this.number;
  }

  async #fetch(url) {
    this.asked.push([url, this.now]);
    const text = await this.answer(url);
    if (text === null) throw new TypeError("Failed to fetch");
    return { ok: this.status < 400, statusText: `${this.status}`, text: async () => text };
  }
}

// All promises that can be kept are kept before Node.js comes to this.
export const settled = () => new Promise((resolve) => setImmediate(resolve));
