"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const video = $("video");
  const duration = Math.max(data.duration, 0.001);
  const WIDEST = 8e6; // pixels that a lane may be stretched to
  const FLOOR = data.floor;
  const state = {
    least: null, // null: the events of the result, else the lowest score
    hidden: new Set(), // classes that are filtered out
    more: false, // lanes of classes without events
    view: [0, duration],
    now: 0,
    until: null, // where playing stops
    shown: [], // events that pass the threshold and the filter
    chosen: null,
    loaded: false,
  };

  // ------------------------------------------------------------ data

  const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const unpack = (list) => list.map(([start, end, label, score]) => ({ start, end, label, score }));
  const events = unpack(data.events);
  const candidates = unpack(data.candidates);
  const order = (a, b) => a.start - b.start || a.end - b.end || a.label - b.label || b.score - a.score;
  const column = (curves, label, values) => {
    const place = curves ? curves.labels.indexOf(label) : -1;
    if (place < 0) return null;
    const width = curves.labels.length;
    return { step: curves.step, rows: curves.rows, at: (row) => values[row * width + place] };
  };
  const scores = data.curves && bytes(data.curves.values);
  const heard = data.evidence && bytes(data.evidence.audio);
  const seen = data.evidence && bytes(data.evidence.visual);
  const alone = data.evidence
    ? [...unpack(data.evidence.heard).map((e) => ({ ...e, medium: "heard only" })),
       ...unpack(data.evidence.seen).map((e) => ({ ...e, medium: "seen only" }))].sort(order)
    : [];

  const selected = () => {
    if (state.least === null) return events;
    const strong = candidates.filter((e) => e.score >= state.least - 1e-9);
    if (data.most === null || strong.length <= data.most) return strong;
    const best = strong.sort((a, b) => b.score - a.score || a.start - b.start || a.end - b.end || a.label - b.label);
    return best.slice(0, data.most).sort(order);
  };

  const even = (number) => { // a half goes to the even neighbour, as on the command line
    const near = Math.round(number);
    return near - number === 0.5 && near % 2 ? near - 1 : near;
  };
  const clock = (seconds, decimals = 1) => {
    const units = even(Math.max(0, seconds) * 10 ** decimals);
    const whole = Math.floor(units / 10 ** decimals);
    const rest = decimals ? "." + String(units % 10 ** decimals).padStart(decimals, "0") : "";
    const two = (number) => String(number).padStart(2, "0");
    const minutes = `${Math.floor(whole / 60) % 60}`;
    const head = duration >= 3600 ? `${Math.floor(whole / 3600)}:${two(minutes)}` : minutes;
    return `${head}:${two(whole % 60)}${rest}`;
  };
  const colour = (label) => data.colours[data.ranks[label] % data.colours.length];
  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // ------------------------------------------------------------ lanes

  const lanes = new Map(); // label -> { row, track, canvas, inner, count }
  const counts = () => {
    const found = new Map();
    for (const e of state.least === null ? events : selected()) found.set(e.label, (found.get(e.label) || 0) + 1);
    return found;
  };

  const makeLane = (label) => {
    const row = element("div", "row lane" + (data.evidence ? " evidence" : ""));
    const name = element("div", "name");
    const box = element("label");
    const tick = element("input");
    tick.type = "checkbox";
    tick.checked = true;
    tick.addEventListener("change", () => {
      state.hidden[tick.checked ? "delete" : "add"](label);
      refresh();
    });
    const count = element("em");
    box.append(tick, element("span", "", data.names[label]), count);
    box.title = data.names[label];
    name.append(box);
    const track = element("div", "track");
    const canvas = element("canvas");
    const inner = element("div", "inner");
    track.append(canvas, inner);
    row.append(name, track);
    row.style.setProperty("--c", colour(label));
    lanes.set(label, { row, track, canvas, inner, count, tick });
    return lanes.get(label);
  };

  const box = (e, extra) => {
    const score = e.score.toFixed(2);
    const made = element("button", "ev" + (extra || ""), e.medium ? `${e.medium.split(" ")[0]} ${score}` : score);
    made.type = "button";
    made.tabIndex = -1; // the list is the way by keyboard
    const text = `${data.names[e.label]}, ${clock(e.start)} to ${clock(e.end)}, score ${e.score.toFixed(2)}` +
      (e.medium ? `, ${e.medium}` : "");
    made.title = text;
    made.setAttribute("aria-label", text);
    made.style.left = `${(100 * e.start) / duration}%`;
    made.style.width = `${(100 * Math.max(0, e.end - e.start)) / duration}%`;
    made.event = e;
    e.box = made;
    return made;
  };

  const fillLanes = () => {
    const found = counts();
    const labels = data.names.map((_, label) => label).sort((a, b) => data.ranks[a] - data.ranks[b]);
    const quiet = [];
    const shown = [];
    for (const label of labels) {
      const curve = (data.curves && data.curves.labels.includes(label)) || alone.some((e) => e.label === label);
      if (found.get(label) || (curve && (state.more || !found.size))) shown.push(label);
      else if (curve) quiet.push(label);
    }
    const rows = shown.map((label) => {
      const lane = lanes.get(label) || makeLane(label);
      lane.inner.replaceChildren(...alone.filter((e) => e.label === label).map((e) => box(e, " alone")));
      lane.count.textContent = found.get(label) || 0;
      lane.tick.checked = !state.hidden.has(label);
      lane.row.classList.toggle("off", state.hidden.has(label));
      return lane.row;
    });
    $("lanes").replaceChildren(...rows);
    $("more").hidden = !quiet.length && !state.more;
    $("more").textContent = state.more ? "Fewer classes" : `${quiet.length} more classes without events`;
  };

  // ------------------------------------------------------------ list

  const item = (e) => {
    const line = element("li");
    const made = element("button");
    made.type = "button";
    const time = element("span", "t", clock(e.start));
    time.append(element("u", "", ` – ${clock(e.end)}`));
    const name = element("b", "", data.names[e.label]);
    if (e.medium) name.append(element("span", "mark", ` ${e.medium}`));
    made.append(element("i"), time, name, element("span", "s", e.score.toFixed(2)));
    made.style.setProperty("--c", colour(e.label));
    made.event = e;
    e.item = made;
    line.append(made);
    return line;
  };

  // Boxes and lines of thousands of events are made in turns, so that the page answers in between.
  let filling = 0;
  const TURN = 12, PORTION = 50; // milliseconds, events
  const fill = () => {
    const mine = ++filling, found = state.shown, root = document.documentElement;
    let done = 0;
    delete root.dataset.filled;
    const turn = () => {
      const end = performance.now() + TURN;
      while (mine === filling && done < found.length && performance.now() < end) {
        const portion = found.slice(done, (done += PORTION));
        $("list").append(...portion.map(item));
        for (const e of portion) lanes.get(e.label).inner.append(box(e));
      }
      if (mine !== filling) return;
      if (done < found.length) setTimeout(turn);
      else root.dataset.filled = "yes";
      highlight(true);
    };
    turn();
  };

  const fillList = () => {
    $("list").replaceChildren();
    $("list").scrollTop = 0;
    const count = state.shown.length;
    $("count").textContent = `${count} event${count === 1 ? "" : "s"}`;
    $("none").hidden = count > 0;
    if (!count) $("none").textContent = state.hidden.size ? "All classes with events are switched off." : data.why;
  };

  const refresh = () => {
    state.shown = selected().filter((e) => !state.hidden.has(e.label));
    fillLanes();
    fillList();
    const own = state.least === null;
    $("score").value = own ? data.least ?? Math.min(1, ...events.map((e) => e.score), data.best ?? 1) : state.least;
    $("score-shown").textContent = own ? (data.least === null ? "per class" : data.least.toFixed(2)) : state.least.toFixed(2);
    $("score").setAttribute("aria-valuetext", $("score-shown").textContent);
    $("own").disabled = own;
    fill();
    choose(state.shown.includes(state.chosen) ? state.chosen : null);
    setCues();
    draw();
  };

  // ------------------------------------------------------------ drawing

  const prepare = (canvas) => {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    return { pen, width, height };
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // The largest value of a curve under each pixel, as runs of equal values.
  const heat = (pen, curve, width, top, height, paint) => {
    const [begin, end] = state.view;
    const value = (x) => {
      const first = Math.floor((begin + ((end - begin) * x) / width) / curve.step);
      const last = Math.max(first, Math.ceil((begin + ((end - begin) * (x + 1)) / width) / curve.step) - 1);
      let most = 0;
      for (let row = Math.max(0, first); row <= last && row < curve.rows; row++) most = Math.max(most, curve.at(row));
      return most;
    };
    pen.fillStyle = paint;
    let from = 0, held = value(0);
    for (let x = 1; x <= width; x++) {
      const next = x < width ? value(x) : -1;
      if (next === held) continue;
      if (held) {
        pen.globalAlpha = (held / 255) * 0.75;
        pen.fillRect(from, top, x - from, height);
      }
      from = x;
      held = next;
    }
    pen.globalAlpha = 1;
  };

  const drawLane = (label, lane) => {
    const { pen, width, height } = prepare(lane.canvas);
    const curve = scores && column(data.curves, label, scores);
    if (curve) heat(pen, curve, width, 0, Math.min(30, height), colour(label));
    if (!data.evidence) return;
    const sound = column(data.evidence, label, heard), picture = column(data.evidence, label, seen);
    pen.font = "9px system-ui, sans-serif";
    if (sound) heat(pen, sound, width, 31, 7, css("--ink"));
    if (picture) heat(pen, picture, width, 39, 7, css("--accent"));
  };

  const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
  const drawRuler = () => {
    const { pen, width, height } = prepare($("ruler").firstElementChild);
    const [begin, end] = state.view;
    const step = STEPS.find((s) => (s / (end - begin)) * width >= 74) || STEPS.at(-1);
    pen.fillStyle = css("--soft");
    pen.strokeStyle = css("--line");
    pen.font = "12px system-ui, sans-serif";
    for (let k = Math.ceil(begin / step); k * step <= end; k++) {
      const x = ((k * step - begin) / (end - begin)) * width;
      pen.beginPath();
      pen.moveTo(x + 0.5, 0);
      pen.lineTo(x + 0.5, height);
      pen.stroke();
      const text = clock(k * step, step < 1 ? 1 : 0);
      if (x + 6 + pen.measureText(text).width < width) pen.fillText(text, x + 4, 15);
    }
  };

  const peaks = data.peaks ? bytes(data.peaks) : null;
  const drawOverview = () => {
    const { pen, width, height } = prepare($("overview").firstElementChild);
    const middle = height / 2;
    if (peaks) {
      const top = Math.max(32, peaks.reduce((a, b) => Math.max(a, b), 0));
      pen.fillStyle = css("--wave");
      for (let x = 0; x < width; x++) {
        let most = 0;
        const last = Math.max(Math.ceil(((x + 1) / width) * peaks.length), Math.floor((x / width) * peaks.length) + 1);
        for (let i = Math.floor((x / width) * peaks.length); i < last; i++) most = Math.max(most, peaks[i] || 0);
        const size = Math.max(0.5, (most / top) * (middle - 2));
        pen.fillRect(x, middle - size, 1, 2 * size);
      }
    }
    for (const e of state.shown) {
      pen.fillStyle = colour(e.label);
      pen.fillRect((e.start / duration) * width, height - 4, Math.max(1, ((e.end - e.start) / duration) * width), 4);
    }
    const [begin, end] = state.view;
    if (end - begin < duration - 1e-6) {
      pen.fillStyle = css("--shade");
      pen.fillRect((begin / duration) * width, 0, ((end - begin) / duration) * width, height);
      pen.strokeStyle = css("--accent");
      pen.strokeRect((begin / duration) * width + 0.5, 0.5, Math.max(2, ((end - begin) / duration) * width - 1), height - 1);
    }
  };

  const pictures = [...$("strip").children];
  const drawStrip = () => {
    const track = $("strip-track");
    const width = track.clientWidth;
    const [begin, end] = state.view;
    let reached = -Infinity;
    pictures.forEach((picture, number) => {
      const wide = picture.naturalWidth ? (62 * picture.naturalWidth) / picture.naturalHeight : 110;
      const x = ((data.thumbnails[number] - begin) / (end - begin)) * width - wide / 2;
      const visible = x + wide > 0 && x < width && x >= reached - 1;
      picture.hidden = !visible;
      if (visible) {
        picture.style.left = `${x}px`;
        reached = x + wide + 2;
      }
    });
  };

  const width = () => $("ruler").clientWidth || 1;
  const draw = () => {
    const [begin, end] = state.view;
    const wide = (width() * duration) / (end - begin);
    $("rows").style.setProperty("--wide", wide);
    $("rows").style.setProperty("--shift", (begin / duration) * wide);
    for (const [label, lane] of lanes) if (lane.row.isConnected) drawLane(label, lane);
    drawRuler();
    drawStrip();
    drawOverview();
    movePlayhead();
  };
  let asked = false;
  const drawSoon = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };

  const setView = (begin, end) => {
    const least = Math.max(0.5, (width() * duration) / WIDEST);
    const span = Math.min(duration, Math.max(Math.min(least, duration), end - begin));
    const start = Math.min(Math.max(0, (begin + end - span) / 2), duration - span);
    state.view = [start, start + span];
    drawSoon();
  };
  const zoom = (factor, around) => {
    const [begin, end] = state.view;
    const centre = around ?? (state.now >= begin && state.now <= end ? state.now : (begin + end) / 2);
    const start = Math.max(0, centre - (centre - begin) * factor);
    setView(start, start + (end - begin) * factor);
  };

  // ------------------------------------------------------------ playing

  const movePlayhead = () => {
    const [begin, end] = state.view;
    const share = (state.now - begin) / (end - begin);
    const track = $("ruler");
    $("playhead").hidden = share < 0 || share > 1;
    $("playhead").style.left = `${track.offsetLeft + share * track.clientWidth}px`;
    $("here").style.left = `${(100 * state.now) / duration}%`;
    $("clock").textContent = `${clock(state.now)} / ${clock(duration)}`;
  };

  let active = new Set();
  const highlight = (force) => {
    const on = new Set(state.shown.filter((e) => e.start <= state.now && state.now < e.end));
    if (!force && on.size === active.size && [...on].every((e) => active.has(e))) return;
    for (const e of active) if (!on.has(e)) e.item?.classList.remove("on");
    for (const e of on) e.item?.classList.add("on");
    active = on;
    const best = new Map();
    for (const e of [...on].sort((a, b) => b.score - a.score)) if (!best.has(e.label)) best.set(e.label, e);
    $("now").replaceChildren(...[...best.values()].slice(0, 4).map((e) => {
      const chip = element("span", "", `${data.names[e.label]} ${e.score.toFixed(2)}`);
      chip.style.setProperty("--c", colour(e.label));
      return chip;
    }));
  };

  const setNow = (seconds) => {
    state.now = Math.min(Math.max(0, seconds), duration);
    const [begin, end] = state.view;
    if (state.now < begin || state.now > end) setView(state.now - (end - begin) / 10, state.now + (9 * (end - begin)) / 10);
    movePlayhead();
    highlight(false);
  };
  const seek = (seconds, until) => {
    state.until = until ?? null;
    const time = Math.min(Math.max(0, seconds), duration);
    if (state.loaded) video.currentTime = time;
    setNow(time);
  };
  const play = () => state.loaded && video.play().catch(() => {});
  const toggle = () => {
    state.until = null;
    return video.paused ? play() : video.pause();
  };
  const follow = () => {
    setNow(video.currentTime);
    if (state.until !== null && video.currentTime >= state.until) {
      state.until = null;
      video.pause();
    } else if (!video.paused) requestAnimationFrame(follow);
  };
  const start = (e) => {
    choose(e);
    seek(e.start, e.end);
    play();
  };

  video.addEventListener("play", () => {
    $("play").textContent = "Pause";
    requestAnimationFrame(follow);
  });
  video.addEventListener("pause", () => ($("play").textContent = "Play"));
  video.addEventListener("seeked", () => setNow(video.currentTime));
  video.addEventListener("timeupdate", () => setNow(video.currentTime));
  video.addEventListener("loadedmetadata", () => {
    state.loaded = true;
    $("missing").hidden = true;
    if (state.now) video.currentTime = state.now;
    if (!video.videoWidth && data.picture) tell("Only the sound of the video can be played by this browser.");
  });
  video.addEventListener("error", () => missing());

  const tell = (text) => {
    $("missing-text").textContent = text;
    $("missing").hidden = false;
  };
  const missing = () => {
    state.loaded = false;
    tell(data.source
      ? `The video could not be played from ${decodeURIComponentSafe(data.source)}: it was moved, or this browser does not know its format. The timeline works without it.`
      : "This timeline does not say where its video is. The timeline works without it.");
  };
  const decodeURIComponentSafe = (text) => {
    try { return decodeURIComponent(text); } catch { return text; }
  };
  let attached = null;
  const attach = (file) => {
    if (!file) return;
    if (attached) URL.revokeObjectURL(attached);
    attached = URL.createObjectURL(file);
    video.src = attached;
  };
  $("file").addEventListener("change", (event) => attach(event.target.files[0]));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    attach(event.dataTransfer.files[0]);
  });

  // Captions that the player's own menu can switch on; their text is WebVTT, so it is escaped.
  const captions = video.addTextTrack("captions", "events", "en");
  captions.mode = "hidden";
  const setCues = () => {
    for (const cue of [...(captions.cues || [])]) captions.removeCue(cue);
    const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
    for (const e of state.shown.slice(0, 2000))
      if (e.end > e.start) captions.addCue(new VTTCue(e.start, e.end, escaped(data.names[e.label])));
  };

  // ------------------------------------------------------------ one event

  const choose = (e) => {
    for (const part of [state.chosen?.box, state.chosen?.item]) part?.classList.remove("chosen");
    state.chosen = e;
    for (const part of [e?.box, e?.item]) part?.classList.add("chosen");
    $("detail").hidden = !e;
    if (!e) return;
    e.item?.scrollIntoView({ block: "nearest" });
    $("detail-name").textContent = `${data.names[e.label]} ${e.score.toFixed(2)}${e.medium ? ", " + e.medium : ""}`;
    $("detail-time").textContent = `${clock(e.start)} – ${clock(e.end)}, ${(e.end - e.start).toFixed(1)} s`;
    drawEvidence(e);
  };

  const mean = (curve, e) => {
    let sum = 0, count = 0;
    for (let row = Math.floor(e.start / curve.step); row < Math.ceil(e.end / curve.step) && row < curve.rows; row++) {
      sum += curve.at(row);
      count++;
    }
    return count ? sum / count / 255 : 0;
  };

  const drawEvidence = (e) => {
    const both = scores && column(data.curves, e.label, scores);
    const sound = data.evidence && column(data.evidence, e.label, heard);
    const picture = data.evidence && column(data.evidence, e.label, seen);
    $("evidence").hidden = !both && !sound;
    $("why").hidden = !sound;
    if ($("evidence").hidden) return;
    const { pen, width: wide, height } = prepare($("evidence"));
    const spare = Math.max(2, (e.end - e.start) / 2);
    const begin = Math.max(0, e.start - spare), end = Math.min(duration, e.end + spare);
    const x = (time) => ((time - begin) / (end - begin)) * wide;
    const y = (value) => height - 16 - value * (height - 24);
    pen.fillStyle = css("--track");
    pen.fillRect(x(e.start), 0, x(e.end) - x(e.start), height - 16);
    pen.fillStyle = css("--soft");
    pen.font = "12px system-ui, sans-serif";
    pen.fillText(clock(begin), 0, height - 3);
    if (x(e.start) > 70 && x(e.start) < wide - 140) pen.fillText(clock(e.start), x(e.start), height - 3);
    pen.textAlign = "right";
    pen.fillText(clock(end), wide, height - 3);
    pen.textAlign = "left";
    const line = (curve, paint, dash, name, place) => {
      if (!curve) return;
      pen.strokeStyle = pen.fillStyle = paint;
      pen.lineWidth = 2;
      pen.setLineDash(dash);
      pen.beginPath();
      for (let row = Math.floor(begin / curve.step); row * curve.step < end && row < curve.rows; row++) {
        pen.lineTo(x(row * curve.step), y(curve.at(row) / 255));
        pen.lineTo(x((row + 1) * curve.step), y(curve.at(row) / 255));
      }
      pen.stroke();
      pen.setLineDash([]);
      pen.fillText(name, 8 + place * 120, 14);
    };
    line(sound, css("--ink"), [2, 3], "··· heard", 1);
    line(picture, css("--accent"), [8, 4], "– – seen", 2);
    line(both, colour(e.label), [], "— together", 0);
    if (sound) $("why").textContent = `Evidence in sound alone ${mean(sound, e).toFixed(2)}, in the picture alone ${mean(picture, e).toFixed(2)}` +
      (both ? `, together ${mean(both, e).toFixed(2)} (means over the event).` : ".");
  };

  // ------------------------------------------------------------ CSV, as avtool export writes it

  const quoted = (cell) => (/[",\n\r]/.test(cell) ? `"${cell.replace(/"/g, '""')}"` : cell);
  const csv = () => {
    const rows = state.shown.map((e) =>
      [data.file, e.start.toFixed(3), e.end.toFixed(3), data.cells[e.label], e.score.toFixed(4)].map(quoted).join(","));
    return ["file,start,end,label,score", ...rows, ""].join("\n");
  };
  const said = (button, text) => {
    const before = button.textContent;
    button.textContent = text;
    setTimeout(() => (button.textContent = before), 1200);
  };
  $("copy").addEventListener("click", async (event) => {
    try {
      await navigator.clipboard.writeText(csv());
      said(event.target, "Copied");
    } catch {
      said(event.target, "Not allowed");
    }
  });
  $("save").addEventListener("click", () => {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = `${data.stem}.events.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // ------------------------------------------------------------ what the user does

  const setLeast = (value) => {
    state.least = value === null ? null : Math.min(1, Math.max(FLOOR, Math.round(value * 100) / 100));
    refresh();
  };
  let sliding = false;
  $("score").addEventListener("input", () => {
    if (sliding) return;
    sliding = true;
    requestAnimationFrame(() => {
      sliding = false;
      setLeast(Number($("score").value));
    });
  });
  $("own").addEventListener("click", () => setLeast(null));
  $("list").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) start(button.event);
  });
  $("lanes").addEventListener("click", (event) => {
    const button = event.target.closest(".ev");
    if (button) return start(button.event);
    const track = event.target.closest(".track");
    if (track) seek(timeAt(track, event.clientX));
  });
  const timeAt = (track, x) => {
    const frame = track.getBoundingClientRect();
    const [begin, end] = state.view;
    return begin + ((x - frame.left) / frame.width) * (end - begin);
  };
  for (const id of ["ruler", "strip-track"]) $(id).addEventListener("click", (event) => seek(timeAt($(id), event.clientX)));

  // Whole file: click seeks, drag zooms.
  let grabbed = null;
  const wholeTime = (x) => {
    const frame = $("overview").getBoundingClientRect();
    return Math.min(Math.max(0, (x - frame.left) / frame.width), 1) * duration;
  };
  $("overview").addEventListener("pointerdown", (event) => {
    grabbed = event.clientX;
    $("overview").setPointerCapture(event.pointerId);
  });
  $("overview").addEventListener("pointermove", (event) => {
    if (grabbed === null || Math.abs(event.clientX - grabbed) < 5) return;
    const [a, b] = [wholeTime(grabbed), wholeTime(event.clientX)].sort((p, q) => p - q);
    setView(a, b);
  });
  $("overview").addEventListener("pointerup", (event) => {
    if (grabbed !== null && Math.abs(event.clientX - grabbed) < 5) seek(wholeTime(event.clientX));
    grabbed = null;
  });
  $("rows").addEventListener("wheel", (event) => {
    const whole = event.target.closest("#overview, #ruler");
    if (!event.ctrlKey && !event.metaKey && !whole && Math.abs(event.deltaX) <= Math.abs(event.deltaY)) return;
    event.preventDefault();
    const [begin, end] = state.view;
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      const move = (event.deltaX / width()) * (end - begin);
      setView(begin + move, end + move);
    } else {
      const around = event.target.closest("#overview") ? wholeTime(event.clientX) : timeAt($("ruler"), event.clientX);
      zoom(Math.exp(Math.sign(event.deltaY) * 0.22), around);
    }
  }, { passive: false });

  const step = (direction) => {
    const list = state.shown;
    const e = direction > 0 ? list.find((e) => e.start > state.now + 0.05) : list.findLast((e) => e.start < state.now - 0.5);
    if (!e) return;
    choose(e);
    seek(e.start);
  };
  const showAll = (all) => {
    state.hidden = new Set(all ? [] : data.names.keys());
    refresh();
  };
  $("play").addEventListener("click", toggle);
  $("next").addEventListener("click", () => step(1));
  $("previous").addEventListener("click", () => step(-1));
  $("in").addEventListener("click", () => zoom(0.5));
  $("out").addEventListener("click", () => zoom(2));
  $("fit").addEventListener("click", () => setView(0, duration));
  $("again").addEventListener("click", () => state.chosen && start(state.chosen));
  $("all").addEventListener("click", () => showAll(true));
  $("clear").addEventListener("click", () => showAll(false));
  $("more").addEventListener("click", () => {
    state.more = !state.more;
    refresh();
  });
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    draw();
    if (state.chosen) drawEvidence(state.chosen);
  });

  const KEYS = {
    " ": toggle,
    ArrowLeft: (event) => seek(state.now - (event.shiftKey ? 10 : 1)),
    ArrowRight: (event) => seek(state.now + (event.shiftKey ? 10 : 1)),
    n: () => step(1),
    p: () => step(-1),
    Enter: () => state.chosen && start(state.chosen),
    "+": () => zoom(0.5),
    "=": () => zoom(0.5),
    "-": () => zoom(2),
    0: () => setView(0, duration),
    "[": () => setLeast(Number($("score").value) - 0.05),
    "]": () => setLeast(Number($("score").value) + 0.05),
  };
  addEventListener("keydown", (event) => {
    const action = KEYS[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    if (target.matches?.("input[type=range]") && event.key.startsWith("Arrow")) return;
    if (target.matches?.("button, summary, input") && (event.key === " " || event.key === "Enter")) return;
    event.preventDefault();
    action(event);
  }, true);

  // ------------------------------------------------------------ print: the table follows the threshold

  addEventListener("beforeprint", () => {
    const page = $("print");
    if (state.least === null && !state.hidden.size) {
      page.innerHTML = $("plain").textContent; // this page's own HTML, which a browser without scripts would show
      return;
    }
    const row = (cells, kind) => {
      const line = element("tr");
      cells.forEach((text, i) => line.append(element(kind, i === 2 ? "" : "n", text)));
      return line;
    };
    const table = element("table");
    table.append(row(["start", "end", "event", "score"], "th"));
    table.append(...state.shown.map((e) => row([clock(e.start), clock(e.end), data.names[e.label], e.score.toFixed(2)], "td")));
    page.replaceChildren(element("p", "", `Lowest score ${$("score-shown").textContent}`), table);
  });

  // ------------------------------------------------------------ start

  $("theme").hidden = $("app").hidden = false;
  $("strip-track").append(...pictures);
  $("strip-row").hidden = !pictures.length;
  $("legend").hidden = !data.evidence;
  pictures.forEach((picture) => picture.decode?.().then(drawSoon, () => {}));
  refresh();
  if (data.source) video.src = data.source;
  else missing();
  new ResizeObserver(drawSoon).observe($("rows"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawSoon);
  requestAnimationFrame(() => performance.mark("avtool-ready"));
})();
