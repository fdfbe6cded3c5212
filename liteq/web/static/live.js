// The page looks again by itself, while somebody looks at it and has nothing in hand. Without
// scripts, all works by loading it anew.
"use strict";

const PAUSE = 2000; // ms between two looks; more if the store takes long to answer
const LONGEST = 30000; // while it does not answer

const toggle = document.getElementById("live");
const main = () => document.querySelector("main[data-live]");
let isOn = false;
let isLooking = false;
let shown = ""; // what came last, to leave the page alone if the same comes again
let timer = 0;
let pause = PAUSE;

function isChanged(input) {
  if (input.type === "checkbox") return input.checked !== input.defaultChecked;
  return input.value !== input.defaultValue;
}

function isInHand() {
  const at = document.activeElement;
  return (
    document.hidden ||
    [...document.querySelectorAll("main input")].some(isChanged) ||
    (at !== null && at.matches("main input, main button, main summary, main a")) ||
    !document.getSelection().isCollapsed
  );
}

async function look() {
  isLooking = true;
  if (!isInHand()) {
    const began = performance.now();
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.querySelector("main[data-live]");
      if (!answer.ok || fresh === null) throw new Error(answer.statusText);
      if (isOn && !isInHand() && fresh.innerHTML !== shown) {
        shown = fresh.innerHTML;
        replace(fresh);
      }
      document.querySelector("footer").replaceWith(page.querySelector("footer"));
      tell(true);
      pause = Math.max(PAUSE, 10 * (performance.now() - began));
    } catch {
      tell(false);
      pause = Math.min(LONGEST, 2 * pause);
    }
  }
  isLooking = false;
  if (isOn) timer = setTimeout(look, pause);
}

function tell(answers) {
  toggle.classList.toggle("lost", !answers);
  toggle.textContent = answers ? "Live" : "No answer";
}

// What the reader has opened and scrolled stays as it is.
function replace(fresh) {
  const open = [...main().querySelectorAll("details")].map((one) => one.open);
  const places = [...main().querySelectorAll(".wide, pre")].map((one) => one.scrollLeft);
  main().replaceWith(fresh);
  fresh.querySelectorAll("details").forEach((one, at) => {
    if (at < open.length) one.open = open[at];
  });
  fresh.querySelectorAll(".wide, pre").forEach((one, at) => {
    if (at < places.length) one.scrollLeft = places[at];
  });
}

function set(on) {
  isOn = on;
  clearTimeout(timer);
  toggle.setAttribute("aria-pressed", String(on));
  if (on && !isLooking) timer = setTimeout(look, PAUSE); // else that look goes on with it
}

// Where a browser keeps nothing for us, the choice holds for this page.
function kept() {
  try {
    return localStorage.getItem("liteq.live");
  } catch {
    return null;
  }
}

function keep(choice) {
  try {
    localStorage.setItem("liteq.live", choice);
  } catch {}
}

// What was done is said once, and not again by a later reload.
const here = new URL(location.href);
if (here.searchParams.has("said")) {
  here.searchParams.delete("said");
  history.replaceState(null, "", here);
}

if (main() !== null) {
  toggle.hidden = false;
  set(kept() !== "off");
  toggle.addEventListener("click", () => {
    const on = toggle.getAttribute("aria-pressed") !== "true";
    keep(on ? "on" : "off");
    set(on);
  });
}

// Of many names the page has the first: those that have in them what is typed are asked for.
document.addEventListener("input", async ({ target }) => {
  const typed = target.value;
  if (target.dataset.names === undefined) return;
  try {
    const answer = await fetch(`${target.dataset.names}?part=${encodeURIComponent(typed)}`);
    const names = await answer.text();
    if (answer.ok && target.value === typed) target.list.innerHTML = names;
  } catch {}
});

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-all]")) {
    document.querySelectorAll('main input[name="id"]').forEach((one) => {
      one.checked = event.target.checked;
    });
  }
});

document.addEventListener("keydown", (event) => {
  const search = document.querySelector("[data-search]");
  if (event.key === "/" && search !== null && !event.target.matches("input")) {
    event.preventDefault();
    search.focus();
  }
});
