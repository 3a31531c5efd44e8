// Draws the figures of a page anew from their data: hover for values, drag to zoom, click a name to hide it.
"use strict";
const Plot = (() => {
  const hidden = new Set(), plots = new Set();
  let serial = 0;

  function add(parent, name, attributes = {}, text) {
    const isSvg = parent instanceof SVGElement || name === "svg";
    const node = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  function shown(value, unit, step) {  // `step`: distance to the next tick; without it to four digits
    if (value === null || value === undefined) return "–";
    const near = (v, s) => step ? v.toFixed(Math.max(0, -Math.floor(Math.log10(s) + 1e-9))) : String(+v.toPrecision(4));
    if (unit === "%") return (step ? near(100 * value, 100 * step) : (100 * value).toFixed(2)) + " %";
    if (unit === "B" || unit === "count") {
      const names = unit === "B" ? ["B", "kB", "MB", "GB", "TB"] : ["", "k", "M", "G", "T", "P"];
      let power = 0;
      while (Math.abs(value) >= 999.5 && power < names.length - 1) { value /= 1000; power++; }
      return (+value.toPrecision(step ? 3 : 4) + " " + names[power]).trim();
    }
    return step && Math.abs(value) < 1e6 && step > 1e-6 ? near(value, step) : String(+value.toPrecision(4));
  }

  function ticks(axis, [low, high], count) {
    if (axis.log && high / low > 3) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++)
        for (const factor of high / low > 300 ? [1] : [1, 2, 5]) found.push(+(factor * 10 ** power).toPrecision(3));
      const inside = found.filter(value => value >= low && value <= high);
      const every = Math.ceil(inside.length / (count + 1));
      return inside.filter((_, i) => i % every === 0).map(value => [value, shown(value, axis.unit)]);
    }
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find(factor => factor * power >= 0.999 * rough);
    const values = [];
    for (let i = Math.ceil(low / step - 1e-6); i * step <= high + 1e-6 * step; i++) values.push(i * step);
    return values.map(value => [value, shown(value, axis.unit, step)]);
  }

  function position(axis, [low, high], from, to) {
    const f = axis.log ? Math.log10 : value => value;
    const factor = (to - from) / (f(high) - f(low) || 1);
    const there = value => from + factor * (f(value) - f(low));
    there.back = place => { const v = f(low) + (place - from) / factor; return axis.log ? 10 ** v : v; };
    return there;
  }

  class Drawing {
    constructor(host, data) {
      this.host = host;
      this.zoom = null;
      host.replaceChildren();
      this.legend = add(host, "div", { class: "legend" });
      this.svg = add(host, "svg", { role: "img" });
      this.tip = add(host, "div", { class: "tip", hidden: "" });
      this.back = add(host, "button", { class: "unzoom", type: "button", hidden: "" }, "whole plot");
      this.back.onclick = () => this.setZoom(null);
      this.svg.onpointerdown = event => this.begin(event);
      this.svg.onpointermove = event => this.move(event);
      this.svg.onpointerup = event => this.end(event);
      this.svg.onpointerleave = () => this.leave();
      this.svg.onpointercancel = () => { this.from = undefined; this.leave(); };
      this.svg.ondblclick = () => this.setZoom(null);
      this.set(data);
      this.observer = new ResizeObserver(() => { if (host.clientWidth !== this.width) this.draw(); });
      this.observer.observe(host);
      plots.add(this);
    }

    remove() {
      this.observer.disconnect();
      plots.delete(this);
    }

    set(data) {
      this.data = data;
      const named = new Map(data.series.map(one => [one.name, one])), names = JSON.stringify([...named.keys()]);
      if (data.legend && names !== this.names) {
        this.legend.replaceChildren();
        if (named.size > 1) for (const one of named.values()) toggle(add(this.legend, "button", { type: "button" }), one);
        this.names = names;
      }
      this.draw();
    }

    get series() { return this.data.series.filter(one => !hidden.has(one.name)); }

    limits() {
      const { x, y } = this.data, isWhole = this.series.length === this.data.series.length;
      const xs = this.data.series.flatMap(one => one.x).filter(v => v !== null), margin = 0.03 * (Math.max(...xs) - Math.min(...xs)) || 1;
      const across = this.zoom || x.limits || (xs.length ? [Math.min(...xs) - margin, Math.max(...xs) + margin] : [0, 1]);
      if (!this.zoom && isWhole && y.limits) return [across, y.limits];
      const seen = this.series.flatMap(one => one.y.filter((v, i) => v !== null && one.x[i] >= across[0] && one.x[i] <= across[1]));
      let low = Math.min(...seen), high = Math.max(...seen);
      if (!seen.length || (y.log && low <= 0)) return [across, y.limits || [y.log ? 0.1 : 0, 1]];
      const room = y.log ? (high / low) ** 0.05 || 1 : 0.06 * (high - low) || 0.05 * Math.abs(high) || 1;
      [low, high] = y.log ? [low / Math.max(room, 1.01), high * Math.max(room, 1.01)] : [low - room, high + room];
      return [across, y.unit === "%" ? [Math.max(low, 0), Math.min(high, 1)] : [low, high]];
    }

    draw() {
      const { data, svg } = this, width = this.width = this.host.clientWidth || 520;
      const height = Math.max(120, Math.min(420, width * data.height + 20));
      const [across, up] = this.limits();
      svg.replaceChildren();
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const heights = ticks(data.y, up, Math.max(2, height / 50));
      const left = 10 + 7 * Math.max(2, ...heights.map(([, text]) => text.length)) + (data.y.label ? 16 : 0);
      const isOwn = data.x.ticks.length && !this.zoom;
      const places = isOwn ? data.x.ticks.map(v => [v, String(+v.toPrecision(3))]) : ticks(data.x, across, Math.max(2, width / 95));
      const bottom = height - (data.x.label ? 40 : 24), right = width - Math.max(14, 3.6 * (places.at(-1)?.[1].length || 0));
      const top = data.marks.some(mark => mark.label) ? 32 : 10;
      const x = this.x = position(data.x, across, left, right), y = this.y = position(data.y, up, bottom, top);
      const id = `inside-${this.id ??= ++serial}`;
      const clip = add(svg, "clipPath", { id });
      add(clip, "rect", { x: left - 2, y: top - 2, width: right - left + 4, height: bottom - top + 4 });
      for (const [value, text] of heights) {
        add(svg, "path", { class: "rule", d: `M${left} ${y(value)}H${right}` });
        add(svg, "text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, text);
      }
      for (const [value, text] of places) {
        add(svg, "path", { class: "rule", d: `M${x(value)} ${top}V${bottom}` });
        add(svg, "text", { x: x(value), y: bottom + 16, "text-anchor": "middle" }, text);
      }
      add(svg, "path", { class: "frame", d: `M${left} ${top}V${bottom}H${right}` });
      if (data.x.label) add(svg, "text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, data.x.label);
      if (data.y.label)
        add(svg, "text", { transform: `translate(12 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, data.y.label);
      const inside = add(svg, "g", { "clip-path": `url(#${id})` });
      for (const level of data.levels) add(inside, "path", { class: "level", d: `M${left} ${y(level)}H${right}` });
      this.drawMarks(inside, { top, bottom, across });
      for (const one of this.series) this.drawSeries(inside, one);
      this.over = add(svg, "g", { class: "over" });
      this.frame = { left, right, top, bottom, width, height };
    }

    drawMarks(inside, { top, bottom, across }) {
      const ends = [-1e9, -1e9];
      const grouped = new Map();
      for (const mark of this.data.marks) {
        const attributes = { d: `M${this.x(mark.x)} ${top}V${bottom}`, stroke: mark.colour || "currentColor", "stroke-dasharray": mark.dashes.map(v => 1.5 * v).join(" ") };
        add(inside, "path", { ...attributes, class: "mark" });
        if (mark.label && mark.x >= across[0] && mark.x <= across[1])
          grouped.set(mark.x, [...(grouped.get(mark.x) || []), mark.label]);
      }
      for (const [place, labels] of [...grouped].sort((a, b) => a[0] - b[0])) {
        const text = labels.join(" "), middle = this.x(place), half = 3.4 * text.length + 2;
        const row = ends.findIndex(end => middle - half > end);
        if (row < 0) continue;  // hovering tells it
        ends[row] = middle + half;
        add(this.svg, "text", { x: middle, y: top - 4 - 13 * row, "text-anchor": "middle", class: "small" }, text);
      }
    }

    drawSeries(inside, one) {
      const { x, y } = this, at = one.x.map((v, i) => one.y[i] === null || v === null ? null : [x(v), y(one.y[i])]);
      const group = add(inside, "g", { stroke: one.colour, fill: one.colour, opacity: one.alpha });
      if (one.line) {
        let d = "", isBroken = true;
        for (const point of at) {
          if (point) d += `${isBroken ? "M" : "L"}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
          isBroken = !point;
        }
        add(group, "path", { d, fill: "none", "stroke-width": 1.2 * one.width, "stroke-linejoin": "round" });
        if (!one.marker && at.filter(Boolean).length === 1) add(group, "circle", { cx: at.find(Boolean)[0], cy: at.find(Boolean)[1], r: 3 });
      }
      at.forEach((point, i) => {
        if (!point) return;
        if (one.half[i]) {
          const [low, high] = [y(one.y[i] - one.half[i]), y(one.y[i] + one.half[i])];
          add(group, "path", { d: `M${point[0]} ${low}V${high}M${point[0] - 4} ${low}h8M${point[0] - 4} ${high}h8`, "stroke-width": 1.6, fill: "none" });
        }
        if (one.marker) add(group, "text", { x: point[0], y: point[1] + 0.36 * 1.7 * one.size, "font-size": 1.7 * one.size, "text-anchor": "middle", stroke: "none", class: "marker" }, one.marker);
      });
    }

    place(event) {  // where the pointer is, in the units of the drawing
      const box = this.svg.getBoundingClientRect();
      return [(event.clientX - box.left) * this.frame.width / box.width, (event.clientY - box.top) * this.frame.height / box.height];
    }

    begin(event) {
      if (event.button === 0) this.from = this.place(event)[0];
    }

    move(event) {
      const [px, py] = this.place(event), { left, right, top, bottom } = this.frame;
      this.over.replaceChildren();
      if (this.from !== undefined && Math.abs(px - this.from) > 6) {
        const [a, b] = [Math.max(left, Math.min(px, this.from)), Math.min(right, Math.max(px, this.from))];
        add(this.over, "rect", { class: "chosen", x: a, y: top, width: Math.max(0, b - a), height: bottom - top });
        this.tip.hidden = true;
        return;
      }
      if (px < left - 8 || px > right + 8) return this.leave();
      this.tell(px, py);
    }

    tell(px, py) {
      const { x, y, data } = this, { top, bottom, width } = this.frame;
      const isCurves = data.series.every(one => one.line && !one.marker);
      const nearest = one => {
        let best = null, least = 1e9;
        one.x.forEach((v, i) => {
          if (one.y[i] === null || v === null) return;
          const away = isCurves ? Math.abs(x(v) - px) : Math.hypot(x(v) - px, y(one.y[i]) - py);
          if (away < least) { least = away; best = i; }
        });
        return best === null ? null : { one, i: best, away: least };
      };
      let found = this.series.map(nearest).filter(Boolean).sort((a, b) => a.away - b.away);
      if (!isCurves) found = found.slice(0, 1).filter(hit => hit.away < 40);
      this.hit = found[0];
      if (!found.length) return this.leave();
      this.tip.replaceChildren();
      const { one, i } = found[0], xs = data.x;
      const names = isCurves ? [] : [one.name, one.names[i]].filter(Boolean);
      for (const name of names) add(this.tip, "div", {}, name);
      add(this.tip, "div", { class: "faint" }, `${xs.label} ${shown(one.x[i], xs.unit)}`.trim());
      for (const hit of isCurves ? data.series.map(s => found.find(h => h.one === s)).filter(Boolean) : found) {
        const row = add(this.tip, "div"), half = hit.one.half[hit.i], value = hit.one.y[hit.i];
        add(row, "span", { class: "dot", style: `background: ${hit.one.colour}` });
        add(row, "span", {}, ` ${isCurves ? hit.one.names[0] || hit.one.name : data.y.label} `);
        add(row, "b", {}, shown(value, data.y.unit) + (half ? ` ± ${shown(half, data.y.unit)}` : ""));
        add(this.over, "circle", { cx: x(hit.one.x[hit.i]), cy: y(value), r: 4, fill: hit.one.colour });
      }
      if (isCurves) {
        const at = x(one.x[i]);
        add(this.over, "path", { class: "cross", d: `M${at} ${top}V${bottom}` });
        for (const mark of data.marks) if (mark.text && Math.abs(x(mark.x) - px) < 7) add(this.tip, "div", { class: "faint" }, mark.text);
      }
      if (one.links[i]) add(this.tip, "div", { class: "faint" }, "click: its report");
      this.svg.style.cursor = one.links[i] ? "pointer" : "";
      this.tip.hidden = false;
      const scale = this.svg.clientWidth / width || 1, room = this.host.clientWidth - this.tip.offsetWidth;
      const beside = px * scale + 14;
      this.tip.style.left = `${Math.max(0, beside > room ? Math.min(room, px * scale - 14 - this.tip.offsetWidth) : beside)}px`;
      this.tip.style.top = `${this.svg.offsetTop + top}px`;
    }

    end(event) {
      const px = this.place(event)[0], from = this.from, { left, right } = this.frame;
      this.from = undefined;
      if (from === undefined) return;
      if (Math.abs(px - from) > 6) {
        const clamp = v => Math.max(left, Math.min(right, v));
        this.setZoom([clamp(px), clamp(from)].sort((a, b) => a - b).map(this.x.back));
      } else if (this.hit && this.hit.one.links[this.hit.i]) location.href = this.hit.one.links[this.hit.i];
    }

    leave() {
      this.tip.hidden = true;
      this.hit = undefined;
      this.svg.style.cursor = "";
      this.over.replaceChildren();
    }

    setZoom(zoom) {
      if (zoom && !(zoom[1] > zoom[0])) return;
      this.zoom = zoom;
      this.back.hidden = !zoom;
      this.leave();
      this.draw();
    }
  }

  // A button that hides and shows the series of this name.
  function toggle(button, { name, colour, marker }, label = [name]) {
    button.replaceChildren();
    add(button, "span", { class: "sign", style: `color: ${colour}` }, marker || "━");
    button.append(...label);
    const paint = () => button.setAttribute("aria-pressed", !hidden.has(name));
    button.title = "hide or show";
    button.onclick = () => {
      hidden.has(name) ? hidden.delete(name) : hidden.add(name);
      document.dispatchEvent(new Event("series"));
    };
    document.addEventListener("series", paint);
    paint();
  }

  document.addEventListener("series", () => { for (const plot of plots) plot.draw(); });
  addEventListener("DOMContentLoaded", () => {
    for (const host of document.querySelectorAll("figure[data-plot]")) new Drawing(host, JSON.parse(host.dataset.plot));
    for (const key of document.querySelectorAll(".key [data-series]")) {
      const { series: name, colour, marker } = key.dataset, button = document.createElement("button");
      button.type = "button";
      toggle(button, { name, colour, marker }, [...key.childNodes].slice(1));  // behind its sign
      key.replaceWith(button);
    }
  });
  return { Drawing, add };
})();
