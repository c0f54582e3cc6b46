"use strict";
{
  const content = JSON.parse(document.getElementById("content").textContent);
  const at = (id) => document.getElementById(id);
  const ROW_PX = 68;
  const SPARE_ROWS = 6;
  const MARKS = { normal: "\u25CB", artefact: "\u25C7", abnormal: "\u25A0" };
  const KEPT_AS = ["normscope", content.model_name, content.model_version, content.dataset_fingerprint].join("/");
  const count = content.image_id.length;
  const haystacks = content.image_id.map((id, i) => `${id}\n${content.group_id[i]}\n${content.label[i]}\n${content.marks[i]}`.toLowerCase());
  const ranks = Array.from({ length: count }, (_, i) => i);

  let verdicts = Object.create(null);  // no inherited names: an image may be called __proto__
  let shown = ranks;  // cases in the order of the list
  let selected = 0;  // a case, not a place in the list

  function readVerdicts() {
    try {
      verdicts = Object.assign(Object.create(null), JSON.parse(localStorage.getItem(KEPT_AS)));
    } catch {
      at("storage-note").hidden = false;
    }
  }

  function keepVerdicts() {
    try {
      localStorage.setItem(KEPT_AS, JSON.stringify(verdicts));
    } catch {
      at("storage-note").hidden = false;
    }
  }

  // One scale for the chart and the bars of the list.
  const lowest = Math.min(content.reference[0], content.anomaly_score[count - 1]);
  const highest = Math.max(content.reference.at(-1), content.anomaly_score[0], content.threshold);
  const shareOf = (score) => (score - lowest) / (highest - lowest || 1);
  const verdictOf = (i) => verdicts[content.image_id[i]]?.verdict ?? "";
  const byText = (column) => (a, b) => column[a].localeCompare(column[b], undefined, { numeric: true }) || a - b;
  const ORDERS = {
    most: (a, b) => a - b,
    least: (a, b) => b - a,
    image: byText(content.image_id),
    group: byText(content.group_id),
  };

  function arrange() {
    const text = at("text").value.trim().toLowerCase();
    const least = Number(at("percentile").value) || 0;
    const isOver = at("over").checked;
    const wanted = at("verdict-filter").value;
    const artefacts = at("artefact-filter").value;
    shown = ranks.filter((i) =>
      content.percentile[i] >= least &&
      (!isOver || content.is_anomalous[i]) &&
      (!artefacts || (artefacts === "only") === Boolean(content.marks[i])) &&
      (!text || haystacks[i].includes(text)) &&
      (!wanted || (verdictOf(i) || "none") === wanted));
    shown.sort(ORDERS[at("sort").value]);
    if (shown.length && !shown.includes(selected)) selected = shown[0];
    at("rows").style.height = `${shown.length * ROW_PX}px`;
    showCounts();
    showList();
    showCase();
  }

  function showCounts() {
    const read = Object.keys(verdicts).length;
    at("count").textContent = `${shown.length} of ${count} listed, ${read} with verdict`;
    at("verdict-count").textContent = read;
  }

  function make(tag, className, text) {
    const element = document.createElement(tag);
    element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function makeRow(place) {
    const i = shown[place];
    const row = make("div", "case");
    row.id = `case-${i}`;
    row.role = "option";
    row.style.top = `${place * ROW_PX}px`;
    row.dataset.case = i;
    row.ariaSelected = String(i === selected);
    row.ariaSetSize = shown.length;
    row.ariaPosInSet = place + 1;
    let thumb = make("div", "thumb none");
    if (i < content.thumbnail.length) {
      thumb = make("img", "thumb");
      thumb.alt = "";
      thumb.src = content.thumbnail[i];
    }
    const middle = make("div", "middle");
    const name = make("div", "name", content.image_id[i].replace(/.*\/(?=.)/s, ""));
    name.title = content.image_id[i];
    const meter = make("div", "meter");
    const [filled, limit] = [make("i", ""), make("b", "")];
    filled.style.width = `${100 * shareOf(content.anomaly_score[i])}%`;
    limit.style.left = `${100 * shareOf(content.threshold)}%`;
    meter.append(filled, limit);
    middle.append(name, make("div", "group", content.group_id[i]), meter);
    const end = make("div", "end");
    const verdict = verdictOf(i);
    const state = content.marks[i] ? `\u25C7 ${content.marks[i]}?` : content.is_anomalous[i] ? "\u25B2 over" : "";
    end.append(make("b", "", formatPercentile(i)), verdict ? make("span", "verdict", `${MARKS[verdict]} ${verdict}`) : make("span", "", state));
    row.append(make("div", "rank", i + 1), thumb, middle, end);
    return row;
  }

  function showList() {
    const list = at("list");
    const first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - SPARE_ROWS);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_PX) + SPARE_ROWS);
    const rows = [];
    for (let place = first; place < last; place += 1) rows.push(makeRow(place));
    at("rows").replaceChildren(...rows);
    list.setAttribute("aria-activedescendant", shown.length ? `case-${selected}` : "");
  }

  // Rounded down: 100 is kept for images above every normal image.
  const formatPercentile = (i) => String(Math.floor(10 * content.percentile[i]) / 10);

  function showCase() {
    const isEmpty = shown.length === 0;
    for (const id of ["stage", "rank", "image-id", "chart"]) at(id).style.visibility = isEmpty ? "hidden" : "";
    if (isEmpty) return;
    const i = selected;
    at("rank").textContent = `Rank ${i + 1} of ${content.scored_count}`;
    at("image-id").textContent = content.image_id[i];
    at("group-id").textContent = content.group_id[i];
    at("label").textContent = content.label[i];
    at("label-row").hidden = !content.label[i];
    at("marks").textContent = content.marks[i];
    at("marks-row").hidden = !content.marks[i];
    at("percentile-value").textContent = formatPercentile(i);
    at("score-value").textContent = content.anomaly_score[i].toPrecision(4);
    at("threshold-words").textContent = content.is_anomalous[i] ? "\u25B2 over the threshold" : "\u25BD not over the threshold";
    at("threshold-words").classList.toggle("over", Boolean(content.is_anomalous[i]));
    for (const button of document.querySelectorAll("[data-verdict]")) {
      button.ariaPressed = String(button.dataset.verdict === verdictOf(i));
    }
    showPicture(i);
    drawChart(i);
  }

  function showPicture(i) {
    const hasPicture = i < content.thumbnail.length;
    at("frame").hidden = !hasPicture;
    at("no-picture").hidden = hasPicture;
    at("beside").hidden = !hasPicture;
    if (!hasPicture) {
      at("no-picture").textContent = `No picture is embedded for rank ${i + 1}: only the ${content.thumbnail.length} most anomalous have one. Look the image up by its name.`;
      return;
    }
    at("picture").src = content.thumbnail[i];
    at("picture").alt = `Image ${content.image_id[i]}`;
    at("heat").src = content.heatmap[i];
    showHeat();
    const typical = content.nearest[i].map((near) => makeFigure(content.typical_picture[near], "typical", content.typical_id[near]));
    at("beside").replaceChildren(makeFigure(content.reconstruction[i], "reconstruction", `Reconstruction of ${content.image_id[i]} by the network`), ...typical);
  }

  function makeFigure(source, words, title) {
    const figure = make("figure", "");
    const picture = make("img", "");
    picture.src = source;
    picture.alt = picture.title = title;
    figure.append(picture, make("figcaption", "", words));
    return figure;
  }

  function showHeat() {
    at("heat").hidden = !at("toggle").checked;
    at("heat").style.opacity = at("fade").value / 100;
  }

  function drawChart(i) {
    const x = (score) => 6 + 228 * shareOf(score);
    const bins = new Array(38).fill(0);
    for (const score of content.reference) bins[Math.min(37, Math.floor(38 * shareOf(score)))] += 1;
    const tallest = Math.max(...bins);
    const marks = [draw("line", { x1: 0, x2: 240, y1: 62, y2: 62, class: "axis" })];
    bins.forEach((size, bin) => {
      if (size) marks.push(draw("rect", { x: 6 + bin * 6, y: 62 - (52 * size) / tallest, width: 5, height: (52 * size) / tallest, rx: 1 }));
    });
    const limit = x(content.threshold);
    const here = x(content.anomaly_score[i]);
    marks.push(draw("line", { x1: limit, x2: limit, y1: 4, y2: 62, class: "limit" }));
    marks.push(draw("path", { d: `M${here} 63l5 9h-10z`, class: "here" }));
    marks.push(draw("text", { x: 2, y: 82 }, lowest.toPrecision(3)), draw("text", { x: 238, y: 82, "text-anchor": "end" }, highest.toPrecision(3)));
    at("chart").replaceChildren(...marks);
  }

  function draw(tag, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function select(i) {
    selected = i;
    const list = at("list");
    const top = shown.indexOf(i) * ROW_PX;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW_PX > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_PX - list.clientHeight;
    showList();
    showCase();
  }

  function step(by) {
    const place = Math.min(shown.length - 1, Math.max(0, shown.indexOf(selected) + by));
    if (shown.length) select(shown[place]);
  }

  function decide(verdict) {
    if (!shown.length) return;
    const id = content.image_id[selected];
    if (!verdict || verdictOf(selected) === verdict) delete verdicts[id];
    else verdicts[id] = { verdict, decided_at: new Date().toISOString() };
    keepVerdicts();
    showCounts();
    showList();
    showCase();
  }

  function exportVerdicts() {
    const { model_name, model_version, run_id, source, dataset_fingerprint } = content;
    const found = ranks.filter(verdictOf).map((i) => ({
      image_id: content.image_id[i],
      group_id: content.group_id[i],
      ...verdicts[content.image_id[i]],
      anomaly_score: content.anomaly_score[i],
      percentile: content.percentile[i],
    }));
    const whole = { normscope_verdicts: 1, model_name, model_version, run_id, source, dataset_fingerprint, exported_at: new Date().toISOString(), verdicts: found };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${JSON.stringify(whole, null, 1)}\n`], { type: "application/json" }));
    link.download = `verdicts-${model_name}-version-${model_version}.json`;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  const KEYS = {
    j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
    PageDown: () => step(8), PageUp: () => step(-8), Home: () => step(-count), End: () => step(count),
    t: () => at("toggle").click(), "/": () => at("text").focus(), "?": () => at("keys").showModal(),
    1: () => decide("normal"), 2: () => decide("artefact"), 3: () => decide("abnormal"), 0: () => decide(""),
  };

  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input:not([type=checkbox]):not([type=range]), select");
    if (event.key === "Escape" && isTyping) event.target.blur();
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || at("keys").open) return;
    if (event.target.type === "range" && event.key.startsWith("Arrow")) return;
    if (Object.hasOwn(KEYS, event.key)) {
      event.preventDefault();
      KEYS[event.key]();
    }
  });
  at("rows").addEventListener("click", (event) => {
    const row = event.target.closest(".case");
    if (row) select(Number(row.dataset.case));
  });
  for (const id of ["text", "percentile", "over", "verdict-filter", "artefact-filter", "sort"]) {
    at(id).addEventListener("input", () => {
      at("list").scrollTop = 0;
      arrange();
    });
  }
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.addEventListener("click", () => decide(button.dataset.verdict));
  }
  at("list").addEventListener("scroll", showList, { passive: true });
  at("toggle").addEventListener("input", showHeat);
  at("fade").addEventListener("input", showHeat);
  at("export").addEventListener("click", exportVerdicts);
  at("help").addEventListener("click", () => at("keys").showModal());
  at("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  at("picture").addEventListener("load", () => {
    at("frame").style.setProperty("--aspect", at("picture").naturalWidth / at("picture").naturalHeight);
  });
  window.addEventListener("resize", showList);
  window.addEventListener("storage", () => {
    readVerdicts();
    arrange();
  });

  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
  }

  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  readVerdicts();
  arrange();
}
