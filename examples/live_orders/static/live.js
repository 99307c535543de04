// The page has no state of its own: a stream begins with everything, and changes follow.
const SHOWN = 50;
const money = new Intl.NumberFormat("en-IE", { style: "currency", currency: "EUR" });
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const $ = (id) => document.getElementById(id);

let orders = new Map(); // by id
let filled = false;
let gap = null; // shown in the banner, until everything has been read again
let interrupted = false; // the stream of this page

// -- what is shown -------------------------------------------------------------------------------

const rows = new Map(); // table rows by id

function draw() {
  const newest = [...orders.values()].sort((a, b) => b.id - a.id).slice(0, SHOWN);
  orders = new Map(newest.map((order) => [order.id, order]));
  for (const [id, row] of rows) {
    if (!orders.has(id)) {
      row.remove();
      rows.delete(id);
    }
  }
  newest.forEach((order, at) => {
    const row = rows.get(order.id) ?? $("row").content.firstElementChild.cloneNode(true);
    rows.set(order.id, row);
    write(row, order);
    if ($("orders").children[at] !== row) $("orders").insertBefore(row, $("orders").children[at]);
  });
  $("empty").hidden = newest.length > 0;
  $("count").textContent = newest.length;
  $("value").textContent = money.format(newest.reduce((sum, order) => sum + order.cents, 0) / 100);
  drawAge();
}

// textContent only: what is in the table is text, never markup.
function write(row, order) {
  const set = (selector, text) => (row.querySelector(selector).textContent = text);
  set(".id", `#${order.id}`);
  set(".item", order.quantity > 1 ? `${order.quantity} × ${order.item}` : order.item);
  set(".customer", order.customer);
  set(".amount", money.format(order.cents / 100));
  set(".state span", order.state);
  row.querySelector(".state span").dataset.state = order.state;
  set("time", clock.format(new Date(order.placed)));
  row.querySelector("time").dateTime = order.placed;
}

function pointOut(id, how) {
  const row = rows.get(id);
  if (!row) return;
  row.removeAttribute("data-came");
  void row.offsetWidth; // restarts the animation
  row.dataset.came = how;
}

function drawAge() {
  const latest = Math.max(...[...orders.values()].map((order) => Date.parse(order.placed)));
  $("latest").textContent = orders.size ? age((Date.now() - latest) / 1000) : "–";
}

function age(seconds) {
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

function showLink(state) {
  const words = { listening: "Live", lost: "Database lost", offline: "Offline" };
  $("link").dataset.state = state;
  $("link").textContent = words[state] ?? "Connecting";
}

function showBanner(kind, title, text) {
  $("banner").dataset.kind = kind;
  $("banner-title").textContent = title;
  $("banner-text").textContent = text;
  $("dismiss").hidden = kind !== "restored";
  $("banner").hidden = false;
}

function worry(what) {
  if ($("banner").dataset.kind === "broken") return; // the banner says since when
  const since = clock.format(new Date());
  showBanner("broken", `Lost the ${what} at ${since}.`, "Orders shown may be out of date.");
}

// -- what happens --------------------------------------------------------------------------------

function onLink({ state }) {
  showLink(state);
  if (state === "lost") worry("database");
}

function onAll(message) {
  const before = orders;
  orders = new Map(message.orders.map((order) => [order.id, order]));
  const isNews = (order) => JSON.stringify(before.get(order.id)) !== JSON.stringify(order);
  const news = message.orders.filter(isNews);
  draw();
  const restored = $("link").dataset.state === "listening"; // otherwise a gap follows
  if (filled && restored && (gap || interrupted)) {
    news.forEach((order) => pointOut(order.id, "late"));
    const found = news.length === 1 ? "1 order is" : `${news.length || "no"} orders are`;
    showBanner("restored", whatWasLost(), `Read again: ${found} new or changed.`);
  }
  filled = true;
  if (restored) {
    interrupted = false;
    gap = null;
  }
}

function whatWasLost() {
  if (!gap) return "The stream was interrupted.";
  const [since, until] = [gap.since, gap.until].map((time) => clock.format(new Date(time)));
  return `There was a gap from ${since} to ${until}.`;
}

function onChanged(message) {
  const known = (order) => orders.has(order.id);
  const came = message.orders.map((order) => [order.id, known(order) ? "changed" : "new"]);
  for (const order of message.orders) orders.set(order.id, order);
  draw();
  came.forEach(([id, how]) => pointOut(id, how));
}

function follow() {
  const source = new EventSource("/events");
  const on = (name, handle) =>
    source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
  on("link", onLink);
  on("changed", onChanged);
  on("all", onAll);
  on("gap", (message) => (gap = message));
  source.addEventListener("error", () => {
    showLink("offline");
    if (filled) {
      interrupted = true;
      worry("web server");
    }
    // The browser retries by itself, except after an answer such as a proxy's 502.
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 2000);
  });
}

follow();
$("dismiss").addEventListener("click", () => ($("banner").hidden = true));
setInterval(drawAge, 1000);
