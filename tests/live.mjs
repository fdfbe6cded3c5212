// What the script of the pages does, told in scenes: `node live.mjs SCENE <pages.json`. The
// pages are those that liteq serves; see test_live.py.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { argv } from "node:process";
import { Browser, settled } from "./browser.mjs";

const pages = JSON.parse(readFileSync(0, "utf8"));
const scenes = new Map();
const scene = (name, play) => scenes.set(name, play);

function opened({ page = "tasks", then = "tasks later", ...options } = {}) {
  const browser = new Browser(pages[page], options);
  browser.answer = async () => pages[then];
  return browser;
}

const isNew = (browser) => browser.main.innerHTML.includes("shop.late");

scene("what is new is shown by itself", async () => {
  const browser = opened();
  assert(!browser.button.hidden);

  await browser.pass(1999);
  assert(!isNew(browser));
  await browser.pass(1);
  assert(isNew(browser));
});

scene("what the reader has in hand is left alone", async () => {
  const browser = opened();
  const { document } = browser;
  const box = document.querySelector('main input[name="id"]');
  const field = document.querySelector("[data-search]");
  const ways = [
    (on) => (box.checked = on),
    (on) => (field.value = on ? "shop" : field.defaultValue),
    (on) => (document.activeElement = on ? document.querySelector("main a") : null),
    (on) => (document.hidden = on),
    (on) => (browser.marked = on),
  ];

  for (const hold of ways) {
    hold(true);
    await browser.pass(10_000);
    assert.deepEqual(browser.asked, [], hold.toString());
    hold(false);
  }
  await browser.pass(2000);
  assert(isNew(browser));
});

scene("what is taken in hand during a look is left alone", async () => {
  const ways = [
    (browser) => (browser.main.querySelector('input[name="id"]').checked = true),
    (browser) => browser.does("click", browser.button), // not to look any more
  ];

  for (const hold of ways) {
    const browser = opened();
    browser.answer = async () => {
      hold(browser);
      return pages["tasks later"];
    };
    await browser.pass(2000);
    assert(!isNew(browser), hold.toString());
  }
});

scene("the same page is not put in place of itself but for when it was seen", async () => {
  const browser = opened();
  const { document } = browser;
  await browser.pass(2000);
  const [first, seen] = [browser.main, document.querySelector("footer")];

  await browser.pass(2000);

  assert.equal(browser.main, first);
  assert.notEqual(document.querySelector("footer"), seen);
});

scene("what was opened and scrolled stays so", async () => {
  const browser = opened({ page: "task", then: "task" });
  const [details, text] = ["details", "pre"].map((tag) => browser.main.querySelector(tag));
  assert(details.open);
  details.open = false;
  text.scrollLeft = 40;

  await browser.pass(2000);

  const fresh = browser.main.querySelector("details");
  assert.notEqual(fresh, details);
  assert(!fresh.open);
  assert.equal(browser.main.querySelector("pre").scrollLeft, 40);
});

scene("who does not answer is asked less and less often", async () => {
  const browser = opened();
  browser.answer = async () => null;

  await browser.pass(122_000);
  const times = browser.asked.map(([, at]) => at / 1000);
  assert.deepEqual(times, [2, 6, 14, 30, 60, 90, 120]);
  assert.equal(browser.button.textContent, "No answer");
  assert(browser.button.classes.has("lost"));

  browser.answer = async () => pages["tasks later"];
  await browser.pass(30_000);
  assert(isNew(browser));
  assert.equal(browser.button.textContent, "Live");
  assert(!browser.button.classes.has("lost"));
});

scene("what says that something is wrong is no answer", async () => {
  for (const [status, text] of [[401, "Say who you are"], [503, pages["tasks later"]]]) {
    const browser = opened();
    browser.answer = async () => text;
    browser.status = status;
    await browser.pass(2000);
    assert.equal(browser.button.textContent, "No answer");
    assert(browser.main.innerHTML.includes("shop.early") && !isNew(browser));
  }
});

scene("who takes long to answer is asked for a tenth of the time", async () => {
  const browser = opened();
  browser.answer = async () => {
    browser.now += 900;
    return pages["tasks later"];
  };

  await browser.pass(13_000);

  assert.deepEqual(browser.asked.map(([, at]) => at), [2000, 11_900]);
});

scene("the choice not to look is kept for the next page", async () => {
  const kept = {};
  const first = opened({ kept });
  first.does("click", first.button);
  await first.pass(60_000);
  assert.deepEqual(first.asked, []);

  const next = opened({ kept });
  assert.equal(next.button.getAttribute("aria-pressed"), "false");
  await next.pass(60_000);
  assert.deepEqual(next.asked, []);

  next.does("click", next.button);
  await next.pass(2000);
  assert(isNew(next));
});

scene("where nothing is kept the choice holds for the page", async () => {
  const browser = opened({ keeps: false });
  browser.does("click", browser.button);

  await browser.pass(60_000);

  assert.deepEqual(browser.asked, []);
  assert.equal(browser.button.getAttribute("aria-pressed"), "false");
});

scene("who is switched off and on looks once at a time", async () => {
  const browser = opened();
  const offAndOn = () => [1, 2].forEach(() => browser.does("click", browser.button));
  browser.answer = async () => {
    if (browser.now === 2000) offAndOn();
    return pages["tasks later"];
  };

  await browser.pass(5000);
  offAndOn();
  await browser.pass(4000);

  assert.deepEqual(browser.asked.map(([, at]) => at), [2000, 4000, 7000, 9000]);
});

scene("a page that is not to change is not asked for", async () => {
  const browser = opened({ page: "sure" });

  await browser.pass(60_000);

  assert(browser.button.hidden);
  assert.deepEqual(browser.asked, []);
});

scene("what was done is said once", async () => {
  const browser = opened({ address: "http://localhost/tasks?state=failed&said=retry.1.0" });

  assert.equal(browser.address, "http://localhost/tasks?state=failed");
});

scene("names are suggested for what is typed and not for what was", async () => {
  const browser = opened();
  const field = browser.document.querySelector("[data-search]");
  field.list = browser.document.getElementById("names");
  const answers = {};
  browser.answer = (url) => new Promise((resolve) => (answers[url] = resolve));

  browser.does("input", browser.document.querySelector('input[name="queue"]'));
  assert.deepEqual(browser.asked, []);
  for (field.value of ["t&", "t&2"]) browser.does("input", field);
  answers["/names?part=t%262"]("those of t&2");
  await settled();
  answers["/names?part=t%26"]("those of t&");
  await settled();

  assert.equal(field.list.innerHTML, "those of t&2");
});

scene("the box above the others ticks them all", async () => {
  const browser = opened();
  const all = browser.document.querySelector("[data-all]");
  const boxes = browser.main.querySelectorAll('input[name="id"]');
  assert(boxes.length > 1);

  for (all.checked of [true, false]) {
    browser.does("change", all);
    assert(boxes.every((one) => one.checked === all.checked));
  }
  boxes[0].checked = true;
  browser.does("change", boxes[0]);
  assert(!boxes[1].checked);
});

scene("a slash leads to the search and is written in a field", async () => {
  const browser = opened();
  const field = browser.document.querySelector("[data-search]");
  let focused = 0;
  field.focus = () => focused++;

  assert(browser.does("keydown", browser.main, { key: "/" }).prevented);
  assert(!browser.does("keydown", field, { key: "/" }).prevented);
  assert(!browser.does("keydown", browser.main, { key: "x" }).prevented);

  assert.equal(focused, 1);
});

await scenes.get(argv[2])();
