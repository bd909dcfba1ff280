// The page's end of the panel: kernels, their names, and a button for each operation.
//
// Rule: whatever comes from Python is put in as text, never as markup, and nothing is asked of the
// network. Only the rows that can be seen are elements. What is said to a screen reader is said in
// one live region. `data-lm-suppress-shortcuts` is on each element that takes the focus: without it
// "d d" on a button deletes the notebook's cell.

const ROW = 26; // pixels; panel.css has the same
const SPARE = 4; // rows above and below those that can be seen
const SILENT = 5000; // ms after which a kernel that did not hear a click is said to be busy
const SIGN = 20000; // ms between two signs that the page is there; widget.py has how long it may be silent
const SETTLED = 150; // ms that a row is selected before its preview is asked for
const OPEN = 4; // kernels whose names are shown at first
const KEPT = 5; // transfers that have ended
const ENDED = ["dead", "closed", "unresponsive"];

const COLUMNS = [
  { head: "Name", at: 1, sort: (a, b) => order(a[1], b[1]), look: "name" },
  { head: "Type", at: 2, sort: (a, b) => order(a[2], b[2]), look: "" },
  { head: "Shape", at: 3, sort: (a, b) => a[6] - b[6], look: "number" },
  { head: "Size", at: 4, sort: (a, b) => a[7] - b[7], look: "number" },
  { head: "Value", at: 5, sort: (a, b) => order(a[5], b[5]), look: "name dim" },
];
const order = new Intl.Collator(undefined, { numeric: true }).compare;

const FOCUSABLE = new Set(["BUTTON", "INPUT", "SELECT"]);

/** Make an element; `inside` are elements and texts of ours. */
function make(tag, properties = {}, ...inside) {
  const { aria = {}, ...own } = properties;
  const element = Object.assign(document.createElement(tag), own);
  for (const [name, value] of Object.entries(aria))
    element.setAttribute(name === "role" ? name : `aria-${name}`, value);
  if (FOCUSABLE.has(element.tagName) || own.tabIndex === 0)
    element.dataset.lmSuppressShortcuts = "true";
  if (tag === "button") element.type = "button";
  element.append(...inside);
  return element;
}

/** Set the text of an element; an equal text is left alone, so that no screen reader repeats it. */
function text(element, value) {
  const wanted = String(value ?? "");
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** A sign for the eye, which a screen reader leaves out. */
const glyph = () => make("span", { aria: { hidden: true } });

/** Do something on a key; a handler that returned false would take all other keys, too. */
function onKey(element, key, act) {
  element.addEventListener("keydown", (event) => {
    if (event.key === key) act();
  });
}

const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/** A button that asks again before it does something that cannot be undone. */
class Confirmed {
  constructor(label, question, act) {
    this.question = question;
    this.refuse = null; // what to do in place of the question
    this.button = make("button", { textContent: label, onclick: () => (this.refuse ? this.refuse() : this.ask(true)) });
    this.yes = make("button", { className: "danger", onclick: () => (this.ask(false), act()) }, label);
    this.no = make("button", { onclick: () => this.ask(false) }, "Keep");
    this.text = make("span");
    this.asked = make("span", { className: "bar", hidden: true, aria: { role: "group" } }, this.text, this.yes, this.no);
    onKey(this.asked, "Escape", () => this.ask(false));
    this.element = make("span", { className: "bar" }, this.button, this.asked);
  }

  ask(isAsked) {
    const hadFocus = this.element.contains(document.activeElement);
    if (isAsked) {
      text(this.text, this.question());
      this.asked.setAttribute("aria-label", this.question());
    }
    this.button.hidden = isAsked;
    this.asked.hidden = !isAsked;
    if (hadFocus) (isAsked ? this.no : this.button).focus();
  }
}

/** The names of one kernel: a grid of which only the rows in view are elements. */
class Grid {
  constructor(id, label, choose) {
    this.id = id;
    this.choose = choose;
    this.rows = new Map(); // by key
    this.shown = []; // sorted and filtered
    this.sorted = null; // all, sorted; null if that has to be done again
    this.sorting = { column: 0, down: false };
    this.filter = "";
    this.selected = null; // a key
    this.elements = new Map(); // by index in `shown`
    this.heads = COLUMNS.map((column, at) => {
      const button = make("button", { onclick: () => this.sortBy(at) }, column.head, glyph());
      return make("span", { className: column.look.includes("number") ? "number" : "", aria: { role: "columnheader" } }, button);
    });
    this.body = make("div", { aria: { role: "presentation" } });
    this.empty = make("div", { className: "empty" });
    this.scroll = make("div", { className: "scroll", aria: { role: "rowgroup" }, onscroll: () => this.window() }, this.body);
    this.element = make(
      "div",
      { className: "grid", tabIndex: 0, aria: { role: "grid", label, colcount: COLUMNS.length } },
      make("div", { className: "line heads", aria: { role: "row", rowindex: 1 } }, ...this.heads),
      this.scroll,
      this.empty,
    );
    this.element.onkeydown = (event) => this.key(event);
    this.scroll.onclick = (event) => {
      const line = event.target.closest(".line");
      if (line) this.select(this.shown[line.index][0]);
    };
  }

  /** Take rows that are new or changed, and forget those that are gone. */
  update(set, gone, all) {
    if (all) this.rows.clear();
    for (const key of gone) this.rows.delete(key);
    for (const row of set) {
      row.search = `${row[1]}\n${row[9]}`.toLowerCase();
      this.rows.set(row[0], row);
    }
    this.sorted = null;
    if (this.selected !== null && !this.rows.has(this.selected)) this.select(null);
  }

  sortBy(column) {
    this.sorting = { column, down: this.sorting.column === column && !this.sorting.down };
    this.sorted = null;
    this.draw();
  }

  draw() {
    const { column, down } = this.sorting;
    if (this.sorted === null) {
      const compare = COLUMNS[column].sort;
      const sign = down ? -1 : 1;
      this.sorted = [...this.rows.values()].sort((a, b) => sign * compare(a, b) || order(a[1], b[1]));
    }
    this.shown = this.filter ? this.sorted.filter((row) => row.search.includes(this.filter)) : this.sorted;
    this.heads.forEach((head, at) => {
      if (at === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
      text(head.firstChild.lastChild, at === column ? (down ? " ▾" : " ▴") : "");
    });
    this.element.setAttribute("aria-rowcount", this.shown.length + 1);
    this.body.style.height = `${this.shown.length * ROW}px`;
    this.scroll.hidden = this.shown.length === 0;
    this.empty.hidden = this.shown.length > 0;
    text(this.empty, this.rows.size ? "No name matches the search." : "No names.");
    this.window();
  }

  /** Make elements for the rows that can be seen, and no others. */
  window() {
    const height = this.scroll.clientHeight || 8 * ROW;
    const first = Math.max(0, Math.floor(this.scroll.scrollTop / ROW) - SPARE);
    const end = Math.min(this.shown.length, Math.ceil((this.scroll.scrollTop + height) / ROW) + SPARE);
    const spare = [];
    for (const [index, line] of this.elements)
      if (index < first || index >= end) {
        this.elements.delete(index);
        spare.push(line);
        line.remove();
      }
    let place = this.body.firstChild;
    for (let index = first; index < end; index++) {
      let line = this.elements.get(index);
      if (!line) {
        line = spare.pop() ?? this.line();
        this.elements.set(index, line);
        line.index = index;
        line.id = `${this.id}-${index}`;
        line.style.transform = `translateY(${index * ROW}px)`;
        line.setAttribute("aria-rowindex", index + 2);
      }
      if (line === place) place = line.nextSibling;
      else this.body.insertBefore(line, place); // a screen reader reads in the order of the page
      const row = this.shown[index];
      COLUMNS.forEach(({ at }, column) => text(line.children[column], row[at]));
      line.title = `${row[1]}: ${row[9]} ${row[3]}`;
      line.setAttribute("aria-selected", row[0] === this.selected);
    }
    const at = this.selected === null ? -1 : this.shown.findIndex((row) => row[0] === this.selected);
    if (this.elements.has(at)) this.element.setAttribute("aria-activedescendant", `${this.id}-${at}`);
    else this.element.removeAttribute("aria-activedescendant");
  }

  line() {
    const cells = COLUMNS.map(({ look }) => make("span", { className: look, aria: { role: "gridcell" } }));
    return make("div", { className: "line", aria: { role: "row" } }, ...cells);
  }

  select(key) {
    if (key === this.selected) return;
    this.selected = key;
    this.window();
    this.choose(key === null ? null : this.rows.get(key));
  }

  key(event) {
    if (event.target !== this.element || event.altKey || event.ctrlKey || event.metaKey) return;
    const last = this.shown.length - 1;
    const at = this.shown.findIndex((row) => row[0] === this.selected);
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / ROW) - 1);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: last }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    const index = Math.min(last, Math.max(0, to));
    const top = index * ROW;
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    else if (top + ROW > this.scroll.scrollTop + this.scroll.clientHeight)
      this.scroll.scrollTop = top + ROW - this.scroll.clientHeight;
    this.select(this.shown[index][0]);
  }
}

/** Show what is known of the value that is selected. */
function preview(place, look) {
  const parts = [];
  const add = (...element) => parts.push(make(...element));
  if (look.error) add("div", { className: "note", textContent: look.error });
  if (look.facts?.length) {
    const facts = look.facts.map(([label, value]) => make("span", {}, `${label} `, make("b", { textContent: value })));
    add("div", { className: "facts" }, ...facts);
  }
  if (look.picture?.startsWith("data:image/png;base64,")) add("img", { src: look.picture, alt: `picture of ${look.name}` });
  if (look.columns?.length) {
    const row = (tag, cells, more) => make("tr", {}, ...cells.map((cell) => make(tag, { textContent: cell, ...more })));
    const body = look.rows.map((cells) => row("td", cells));
    add("table", {}, make("thead", {}, row("th", look.columns, { scope: "col" })), make("tbody", {}, ...body));
  }
  if (look.text) add("pre", { textContent: look.text });
  const none = look.waiting ?? "No preview: it would need code of the value's class.";
  if (!parts.length) add("div", { className: "dim", textContent: none });
  place.setAttribute("aria-label", `Preview of ${look.name}`);
  place.replaceChildren(...parts);
}

/** One kernel: what is known of it, its names, and what can be done with the selected one. */
class Kernel {
  constructor(panel, number, { label, group }) {
    Object.assign(this, { panel, number, label, group, version: -1, isOpen: false, known: {}, timer: 0 });
    const id = `${panel.view}-${number}`;
    const ask = (name, fields) => panel.ask(name, { kernel: number, ...fields });
    this.ask = ask;
    this.toggle = make("button", { onclick: () => this.open(!this.isOpen), aria: { expanded: false, controls: id } }, glyph(), label);
    this.state = make("span", { className: "chip" });
    const state = make("span", {}, make("span", { className: "unseen" }, "State: "), this.state);
    this.facts = make("div", { className: "facts" });
    this.note = make("div", { className: "note", hidden: true });
    this.restart = new Confirmed("Restart", () => `Restart ${label}? All its names are lost.`, () => ask("restart"));
    const interrupt = make("button", { textContent: "Interrupt", onclick: () => ask("interrupt") });
    const refresh = make("button", { textContent: "Refresh", title: "List the names again", onclick: () => ask("refresh") });
    for (const button of [interrupt, this.restart.button, refresh]) button.setAttribute("aria-label", `${button.textContent} ${label}`);
    this.grid = new Grid(`${id}-row`, `Names in ${label}`, (row) => this.choose(row));
    this.tally = make("div", { className: "dim" });

    const field = (label) => make("input", { className: "short", spellcheck: false, oninput: () => this.hints(), aria: { label } });
    const button = (label, act) => make("button", { textContent: label, onclick: act });
    this.name = make("div");
    this.as = field("Name in the notebook");
    this.pullButton = button("Pull", () => ask("pull", { name: this.row[0], target: this.as.value }));
    this.pullHint = make("span", { className: "dim" });
    this.targets = make("select", { onchange: () => this.hints(), aria: { label: "Kernel to hand over to" } });
    this.handButton = button("Hand over", () => ask("handoff", { name: this.row[0], target: Number(this.targets.value) }));
    this.handHint = make("span", { className: "dim" });
    this.hand = make("span", { className: "bar" }, this.handButton, "to", this.targets, this.handHint);
    this.remove = new Confirmed("Delete", () => `Delete ${this.row[1]} from ${label}?`, () => ask("delete", { name: this.row[0] }));
    this.preview = make("div", { className: "preview", tabIndex: 0, aria: { role: "region", label: "Preview" } });
    const pull = make("span", { className: "bar" }, this.pullButton, "as", this.as, this.pullHint);
    const actions = make("div", { className: "bar actions", aria: { role: "group", label: `Selected name in ${label}` } }, pull, this.hand, this.remove.element);
    this.chosen = make("div", { className: "chosen", hidden: true }, this.name, actions, this.preview);
    onKey(this.as, "Enter", () => this.pullButton.click());

    this.source = make("select", { onchange: () => ((this.target.value = this.source.value), this.hints()), aria: { label: "Name of the notebook" } });
    this.target = field(`Name in ${label}`);
    this.pushButton = button("Push", () => ask("push", { name: this.source.value, target: this.target.value }));
    this.pushButton.setAttribute("aria-label", `Push to ${label}`);
    this.pushHint = make("span", { className: "dim" });
    this.pushing = make("div", { className: "bar push", aria: { role: "group", label: `Push to ${label}` } },
      this.pushButton, "the notebook's", this.source, "as", this.target, this.pushHint);
    onKey(this.target, "Enter", () => this.pushButton.click());

    this.names = make("div", { id, hidden: true }, this.grid.element, this.tally, this.chosen, this.pushing);
    this.element = make("section", { aria: { label } },
      make("div", { className: "bar" }, make("h3", {}, this.toggle), state, interrupt, this.restart.element, refresh),
      this.facts, this.note, this.names);
    this.mark();
  }

  mark() {
    text(this.toggle.firstChild, this.isOpen ? "▾ " : "▸ ");
    this.toggle.setAttribute("aria-expanded", this.isOpen);
    this.names.hidden = !this.isOpen;
  }

  open(isOpen) {
    this.isOpen = isOpen;
    this.mark();
    this.ask(isOpen ? "open" : "shut");
  }

  /** Show the others that this kernel can hand a name over to. */
  others(kernels) {
    const targets = kernels.filter((other) => other !== this && other.group === this.group);
    this.targets.replaceChildren(...targets.map((other) => make("option", { value: other.number, textContent: other.label })));
    this.hand.hidden = targets.length === 0;
  }

  notebook(names) {
    const before = this.source.value;
    this.source.replaceChildren(...names.map(([name, type]) => make("option", { value: name, textContent: name, title: type })));
    if (names.some(([name]) => name === before)) this.source.value = before;
    else this.target.value = this.source.value;
    this.pushing.hidden = names.length === 0;
    this.hints();
  }

  head(message) {
    const before = this.known.state;
    this.known = message;
    text(this.state, message.state);
    this.state.className = `chip ${ENDED.includes(message.state) ? "bad" : message.state}`;
    const facts = [["Kernel", message.kernel_text], ["Memory", message.memory || "unknown"], ["Lane", message.lane], ["Trust", message.trust]];
    while (this.facts.children.length < facts.length) this.facts.append(make("span", {}, make("span"), make("b")));
    facts.forEach(([label, value], at) => {
      text(this.facts.children[at].firstChild, `${label} `);
      text(this.facts.children[at].lastChild, value);
    });
    this.facts.lastChild.title = message.why_trust;
    this.restart.refuse = message.no_restart ? () => this.panel.refuse(message.no_restart) : null;
    this.restart.button.setAttribute("aria-disabled", Boolean(message.no_restart)); // it can be focused, and says why
    this.restart.button.title = message.no_restart;
    text(this.note, message.note);
    this.note.hidden = !message.note;
    if (before && before !== message.state && (ENDED.includes(message.state) || ENDED.includes(before)))
      this.panel.say(`${this.label} is ${message.state}`);
    this.count();
  }

  update(message) {
    if (message.from !== null && message.from !== this.version) {
      if (this.version >= 0) this.ask("names");
      return;
    }
    this.version = message.to;
    this.grid.update(message.set, message.gone, message.from === null);
    this.panel.draw(this);
    for (const one of this.panel.kernels) one.hints(); // others may hand over to this one
    // The value of the selected name may be another one now.
    if (this.row && message.set.some((row) => row[0] === this.row[0])) this.choose(this.grid.rows.get(this.row[0]), true);
  }

  draw() {
    this.grid.draw();
    this.count();
  }

  count() {
    const { shown, rows, filter } = this.grid;
    const all = count(rows.size, "name");
    const more = this.known.more ? `, and ${this.known.more.toLocaleString("en")} more that are not shown` : "";
    const hint = this.row || !shown.length ? "" : ". Choose one to look at it and to move it.";
    text(this.tally, !rows.size ? "" : (filter ? `${shown.length.toLocaleString("en")} of ${all}` : all) + more + hint);
  }

  choose(row, again = false) {
    this.row = row;
    this.chosen.hidden = !row;
    this.remove.ask(false);
    clearTimeout(this.timer);
    if (!row) return this.count();
    this.name.replaceChildren(make("b", { className: "name", textContent: row[1] }), ` ${row[9]} ${row[3]}`);
    if (!again) {
      this.as.value = row[8] ? row[0] : "";
      preview(this.preview, { name: row[1], waiting: this.known.state === "busy" ? "The preview waits for the cell that the kernel runs." : "…" });
    }
    for (const part of [this.as, this.pullButton, this.handButton, this.remove.button]) part.disabled = !row[8];
    for (const part of [this.pullButton, this.handButton, this.remove.button]) part.setAttribute("aria-label", `${part.textContent} ${row[1]}`);
    this.count();
    this.hints();
    if (row[8]) this.timer = setTimeout(() => this.ask("look", { name: row[0] }), again ? 0 : SETTLED);
    else preview(this.preview, { name: row[1], error: "This is no name that a cell can use." });
  }

  look(message) {
    if (this.row && message.name === this.row[0]) preview(this.preview, { ...message, name: this.row[1] });
  }

  /** Say what would be replaced. */
  hints() {
    const [as, target] = [this.as.value.trim(), this.target.value.trim()];
    const other = this.panel.kernels[Number(this.targets.value)];
    text(this.pullHint, this.row && this.panel.taken.has(as) ? "replaces the notebook's" : "");
    text(this.handHint, this.row && other?.grid.rows.has(this.row[0]) ? `replaces that of ${other.label}` : "");
    text(this.pushHint, this.grid.rows.has(target) ? `replaces that of ${this.label}` : "");
  }
}

/** What is at work, and what has ended. */
class Jobs {
  constructor(panel) {
    this.panel = panel;
    this.lines = new Map();
    this.element = make("div", { className: "jobs", aria: { role: "group", label: "Transfers" } });
  }

  show({ job, state, text: shown, done, total }) {
    let line = this.lines.get(job);
    if (!line) {
      const bar = make("progress", { aria: { label: shown } });
      const button = make("button");
      line = make("div", {}, make("span"), bar, button);
      Object.assign(line, { bar, button });
      this.lines.set(job, this.element.appendChild(line));
    }
    const isAtWork = state === "running";
    const waits = isAtWork && !done ? ": waits for the kernel" : "";
    text(line.firstChild, shown + waits);
    line.className = `job ${state}`;
    line.bar.hidden = !isAtWork;
    if (total > 0) Object.assign(line.bar, { max: total, value: done });
    else line.bar.removeAttribute("value");
    text(line.button, isAtWork ? "Cancel" : "Dismiss");
    line.button.setAttribute("aria-label", `${line.button.textContent}: ${shown}`);
    line.button.onclick = () => {
      this.panel.ask(isAtWork ? "cancel" : "dismiss", { job });
      if (!isAtWork) this.drop(job);
    };
    if (!isAtWork && line.state === "running") this.panel.say(shown, state === "failed");
    line.state = state;
    const ended = [...this.lines].filter(([, one]) => one.state !== "running");
    for (const [old] of ended.slice(0, -KEPT)) this.drop(old);
  }

  drop(job) {
    const line = this.lines.get(job);
    const hadFocus = line.contains(document.activeElement);
    line.remove();
    this.lines.delete(job);
    if (hadFocus) this.panel.search.focus();
  }
}

class Panel {
  constructor(model, el) {
    this.model = model;
    this.view = `bridgehead-${Math.random().toString(36).slice(2)}`;
    this.serial = 0;
    this.unheard = new Map(); // by serial: the timer of a click that the kernel did not hear yet
    this.kernels = [];
    this.taken = new Set(); // the names of the notebook
    this.dirty = new Set(); // kernels to draw
    this.frame = 0;
    this.search = make("input", { type: "search", placeholder: "Search names and types", spellcheck: false, aria: { label: "Search names and types in all kernels" }, oninput: () => this.filter() });
    this.silence = make("div", { className: "note", hidden: true, aria: { role: "alert" } });
    this.refused = make("div", { className: "note", hidden: true, aria: { role: "alert" } });
    this.polite = make("div", { className: "unseen", aria: { role: "status", live: "polite" } });
    this.alert = make("div", { className: "unseen", aria: { role: "alert" } });
    this.place = make("div", { className: "kernels" });
    this.jobs = new Jobs(this);
    el.append(make("div", { className: "bridgehead-panel", aria: { role: "region", label: "Kernels" } },
      make("div", { className: "bar" }, this.search), this.silence, this.refused, this.place, this.jobs.element, this.polite, this.alert));
    this.received = (message) => this.take(message);
    this.lost = () => this.silent("The notebook's kernel was restarted or is disconnected: run the cell again to get a panel.", true);
    model.on("msg:custom", this.received);
    model.on("comm_live_update", this.lost);
    this.left = () => this.bye(); // a page that is closed or loaded again renders nothing any more
    window.addEventListener("pagehide", this.left);
    this.here = () => document.visibilityState === "visible" && this.sign();
    document.addEventListener("visibilitychange", this.here); // a hidden page may have been silent for long
    this.signs = setInterval(() => this.sign(), SIGN);
    this.ask("hello");
  }

  /** Say that the page is there: of a browser that crashed, nothing else tells. */
  sign() {
    if (!this.place.inert) this.model.send({ ask: "here", view: this.view });
  }

  end() {
    this.model.off("msg:custom", this.received);
    this.model.off("comm_live_update", this.lost);
    cancelAnimationFrame(this.frame);
    for (const timer of this.unheard.values()) clearTimeout(timer);
    for (const kernel of this.kernels) clearTimeout(kernel.timer);
    window.removeEventListener("pagehide", this.left);
    document.removeEventListener("visibilitychange", this.here);
    clearInterval(this.signs);
    this.bye();
  }

  bye() {
    this.model.send({ ask: "bye", view: this.view });
  }

  ask(name, fields = {}) {
    const serial = ++this.serial;
    this.refused.hidden = true;
    const silent = () => this.silent("The notebook's kernel does not answer: it runs a cell, or it was restarted.");
    this.unheard.set(serial, setTimeout(silent, SILENT));
    this.model.send({ ask: name, view: this.view, serial, ...fields });
  }

  silent(why, isLost = false) {
    text(this.silence, why);
    this.silence.hidden = false;
    this.place.inert = isLost; // it shows what was so, and nothing there works any more
  }

  refuse(why) {
    text(this.refused, why);
    this.refused.hidden = false;
  }

  say(what, isAlert = false) {
    text(isAlert ? this.alert : this.polite, what);
  }

  take(message) {
    this.silence.hidden = true;
    this.place.inert = false;
    const isMine = message.view === undefined || message.view === this.view;
    const kernel = this.kernels[message.kernel];
    if (!isMine) return;
    if (message.kind === "heard") {
      clearTimeout(this.unheard.get(message.serial));
      this.unheard.delete(message.serial);
    } else if (message.kind === "panel") this.begin(message.kernels);
    else if (message.kind === "forgotten") this.ask("hello");
    else if (message.kind === "notebook") {
      this.taken = new Set(message.taken);
      for (const one of this.kernels) one.notebook(message.names);
    } else if (message.kind === "job") this.jobs.show(message);
    else if (message.kind === "refused") this.refuse(message.text);
    else if (message.kind === "kernel") kernel?.head(message);
    else if (message.kind === "names") kernel?.update(message);
    else if (message.kind === "look") kernel?.look(message);
  }

  begin(kernels) {
    if (this.kernels.length) { // the page was silent for long, and is followed again
      for (const kernel of this.kernels) if (kernel.isOpen) kernel.ask("open");
      return;
    }
    this.kernels = kernels.map((one, number) => new Kernel(this, number, one));
    this.place.replaceChildren(...this.kernels.map((kernel) => kernel.element));
    this.place.classList.toggle("several", kernels.length > 1);
    for (const kernel of this.kernels) {
      kernel.others(this.kernels);
      if (kernels.length <= OPEN || kernel.number === 0) kernel.open(true);
    }
  }

  filter() {
    const wanted = this.search.value.trim().toLowerCase();
    for (const kernel of this.kernels) {
      kernel.grid.filter = wanted;
      kernel.grid.scroll.scrollTop = 0;
      this.draw(kernel);
    }
    clearTimeout(this.saying);
    const total = () => this.kernels.reduce((sum, kernel) => sum + (kernel.isOpen ? kernel.grid.shown.length : 0), 0);
    this.saying = setTimeout(() => this.say(wanted ? `${count(total(), "name")} found` : ""), 500);
  }

  /** Draw a kernel's names with the next picture of the page: many changes, one drawing. */
  draw(kernel) {
    this.dirty.add(kernel);
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      for (const one of this.dirty) one.draw();
      this.dirty.clear();
    });
  }
}

function render({ model, el }) {
  const panel = new Panel(model, el);
  return () => panel.end();
}

export default { render };
