// Scenes of Gaussians to turn: gsplat.js draws them, this reads them and moves the camera.
// Nothing starts before the reader asks for it. Axes are OpenCV's: x right, y down, z forward.
"use strict";

const TURN = Math.PI / 36; // by an arrow key
const STEEP = (85 * Math.PI) / 180; // the camera never looks straight up or down
const FOCUS = 4; // distance to the pivot in the unit of the renderer, whose covariances are halves
const WIDEST = 1600; // pixels of a canvas

const plus = (a, b) => a.map((value, i) => value + b[i]);
const times = (a, factor) => a.map((value) => value * factor);
const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
const unit = (a) => times(a, 1 / Math.hypot(...a));
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** A vector turned about a unit axis (Rodrigues). */
const rotate = (v, axis, angle) => {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  return plus(plus(times(v, c), times(cross(axis, v), s)), times(axis, dot(axis, v) * (1 - c)));
};

/** A camera that turns about a point before it; `start` is what Python's Start holds. */
class Turntable {
  constructor(start) {
    const column = (i) => start.c2w.map((row) => row[i]).slice(0, 3);
    this.scale = FOCUS / start.focus;
    this.axes = [column(0), column(1), column(2)];
    this.pivot = times(plus(column(3), times(column(2), start.focus)), this.scale);
    this.up = unit(start.up);
    this.tilt = Math.asin(clamp(dot(this.axes[2], this.up), -1, 1));
    const side = cross(this.axes[2], this.up);
    this.side = Math.hypot(...side) > 1e-3 ? unit(side) : this.axes[0];
    this.rest();
  }

  rest() {
    [this.yaw, this.pitch, this.distance, this.shift] = [0, 0, FOCUS, [0, 0, 0]];
  }

  turn(yaw, pitch) {
    this.yaw += yaw;
    this.pitch = clamp(this.pitch + pitch, Math.min(0, -STEEP - this.tilt), Math.max(0, STEEP - this.tilt));
  }

  zoom(factor) {
    this.distance = clamp(this.distance * factor, FOCUS / 20, FOCUS * 20);
  }

  /** Along the picture, in parts of its distance. */
  pan(right, down) {
    const [x, y] = this.turned();
    this.shift = plus(this.shift, plus(times(x, right * this.distance), times(y, down * this.distance)));
  }

  turned() {
    return this.axes.map((axis) => rotate(rotate(axis, this.side, this.pitch), this.up, this.yaw));
  }

  place(camera) {
    const [x, y, z] = this.turned();
    const eye = plus(plus(this.pivot, this.shift), times(z, -this.distance));
    const rows = [0, 1, 2].flatMap((i) => [x[i], y[i], z[i]]);
    camera.position = new gsplat.Vector3(...eye);
    camera.rotation = toQuaternion(rows);
  }
}

/** Of a rotation by rows; the largest component is divided by, so it is precise. */
const toQuaternion = ([a, b, c, d, e, f, g, h, i]) => {
  const squares = [1 + a + e + i, 1 + a - e - i, 1 - a + e - i, 1 - a - e + i];
  const most = squares.indexOf(Math.max(...squares));
  const q = [
    [squares[0], h - f, c - g, d - b],
    [h - f, squares[1], b + d, c + g],
    [c - g, b + d, squares[2], f + h],
    [d - b, c + g, f + h, squares[3]],
  ][most];
  const [w, x, y, z] = times(q, 1 / Math.hypot(...q));
  return new gsplat.Quaternion(x, y, z, w);
};

/** gsplat.js has no principal point: this adds it to the projection. */
class Lens extends gsplat.CameraData {
  get projectionMatrix() {
    const m = [...super.projectionMatrix.buffer];
    [m[8], m[9]] = this.offset ?? [0, 0];
    return new gsplat.Matrix4(...m);
  }

  get viewProj() {
    return this.projectionMatrix.multiply(this.viewMatrix);
  }
}

/** The columns of PlayCanvas' compressed .ply: 256 Gaussians share a row of bounds. */
const readGaussians = (bytes, scale) => {
  const mark = "end_header\n";
  const text = new TextDecoder("latin1").decode(bytes.subarray(0, 4096));
  const [header, begin] = [text.slice(0, text.indexOf(mark)), text.indexOf(mark) + mark.length];
  const find = (name) => Number(header.match(new RegExp(`element ${name} (\\d+)`))[1]);
  const [groups, count] = [find("chunk"), find("vertex")];
  const bounds = new Float32Array(bytes.slice(begin, begin + groups * 72).buffer);
  const words = new Uint32Array(bytes.slice(begin + groups * 72, begin + groups * 72 + count * 16).buffer);
  const [positions, scales] = [new Float32Array(3 * count), new Float32Array(3 * count)];
  const [rotations, colors] = [new Float32Array(4 * count), new Uint8Array(4 * count)];
  const bits = (word, shift, width) => ((word >>> shift) & ((1 << width) - 1)) / ((1 << width) - 1);
  const three = (word) => [bits(word, 21, 11), bits(word, 11, 10), bits(word, 0, 11)];
  for (let i = 0; i < count; i++) {
    const chunk = 18 * (i >> 8);
    const between = (at, axis, share) => {
      const [low, high] = [bounds[chunk + at + axis], bounds[chunk + at + 3 + axis]];
      return low * (1 - share) + high * share;
    };
    const [place, turn, size, color] = words.subarray(4 * i, 4 * i + 4);
    three(place).forEach((share, axis) => (positions[3 * i + axis] = scale * between(0, axis, share)));
    three(size).forEach((share, axis) => (scales[3 * i + axis] = scale * Math.exp(between(6, axis, share))));
    const most = turn >>> 30;
    const others = [20, 10, 0].map((shift) => (bits(turn, shift, 10) - 0.5) * Math.SQRT2);
    const rest = Math.sqrt(Math.max(0, 1 - dot(others, others)));
    const quaternion = [...others.slice(0, most), rest, ...others.slice(most)];
    rotations.set(quaternion, 4 * i);
    [24, 16, 8].forEach((shift, channel) => {
      const value = between(12, channel, bits(color, shift, 8));
      colors[4 * i + channel] = Math.round(255 * clamp(value, 0, 1));
    });
    colors[4 * i + 3] = color & 255;
  }
  return new gsplat.SplatData(count, positions, rotations, scales, colors);
};

const decode = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** One model on a canvas of its own. */
class Picture {
  constructor(start, data, frame, redraw) {
    const [height, width] = start.size;
    this.canvas = document.createElement("canvas");
    frame.append(this.canvas);
    const wanted = Math.round((frame.clientWidth * devicePixelRatio) / width);
    const factor = clamp(wanted, 1, Math.max(1, Math.floor(WIDEST / width)));
    const lens = new Lens();
    lens.offset = [2 * start.K[0][2] - 1, 1 - 2 * start.K[1][2]];
    lens.fx = start.K[0][0] * width * factor;
    lens.fy = start.K[1][1] * height * factor;
    this.camera = new gsplat.Camera(lens);
    const scale = FOCUS / start.focus;
    lens.near = 0.4 * start.near * scale; // what gsplat.js leaves out is nearer than half of this
    lens.far = 1e5;
    this.scene = new gsplat.Scene();
    this.renderer = new gsplat.WebGLRenderer(this.canvas, []);
    const [r, g, b] = start.background.map((value) => Math.round(255 * value));
    this.canvas.style.background = `rgb(${r}, ${g}, ${b})`;
    this.renderer.setSize(width * factor, height * factor);
    this.scene.addObject(new gsplat.Splat(readGaussians(decode(data), scale)));
    this.redraw = redraw;
  }

  draw() {
    this.renderer.render(this.scene, this.camera);
    if (this.watched) return;
    this.watched = true;
    // A worker sorts; each order that it finds is drawn.
    this.renderer.renderProgram.worker.addEventListener("message", (event) => {
      this.sorted ||= event.data.depthIndex?.length > 0;
      this.redraw();
    });
  }

  close() {
    this.renderer.dispose();
    this.renderer.gl.getExtension("WEBGL_lose_context")?.loseContext();
    this.canvas.remove();
  }
}

const hasWebGL = () => {
  const gl = document.createElement("canvas").getContext("webgl2");
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return gl !== null;
};

const viewers = [];

/** A scene on the page: its poster, and when it is started, a canvas for each model looked at. */
class Viewer {
  constructor(box) {
    this.box = box;
    this.frame = box.querySelector(".turn-frame");
    this.button = box.querySelector(".turn-start");
    this.said = box.querySelector(".turn-said");
    this.stop = box.querySelector(".turn-stop");
    this.choices = [...box.querySelectorAll("input[type=radio]")];
    this.data = [...box.querySelectorAll("script[type='application/octet-stream']")];
    this.button.hidden = false;
    this.button.addEventListener("click", () => this.open());
    this.stop.addEventListener("click", () => this.close());
    for (const choice of this.choices) choice.addEventListener("change", () => this.show());
    this.listen();
  }

  get chosen() {
    return Math.max(0, this.choices.findIndex((choice) => choice.checked));
  }

  open() {
    if (!hasWebGL()) {
      this.said.textContent = "This browser has no WebGL 2, which turning a scene needs. The pictures show the same.";
      return;
    }
    for (const other of viewers) if (other !== this && other.pictures) other.close();
    this.start = JSON.parse(this.box.dataset.start);
    this.table = new Turntable(this.start);
    this.pictures = new Map();
    [this.button.hidden, this.stop.hidden] = [true, false];
    this.frame.tabIndex = 0;
    this.frame.setAttribute("role", "application");
    this.frame.setAttribute("aria-label", this.frame.dataset.label);
    this.frame.classList.add("open");
    this.frame.focus({ preventScroll: true });
    this.said.textContent = "Loading…";
    setTimeout(() => this.show(), 30); // after the words are seen
  }

  close() {
    for (const picture of this.pictures.values()) picture.close();
    this.pictures = null;
    [this.button.hidden, this.stop.hidden] = [false, true];
    for (const name of ["tabindex", "role", "aria-label"]) this.frame.removeAttribute(name);
    this.frame.classList.remove("open");
    delete this.box.dataset.drawn;
    this.said.textContent = "";
    this.button.focus({ preventScroll: true });
  }

  show() {
    if (!this.pictures) return;
    const number = this.chosen;
    if (!this.pictures.has(number)) {
      const data = this.data[number].textContent;
      this.pictures.set(number, new Picture(this.start, data, this.frame, () => this.redraw()));
    }
    for (const [other, picture] of this.pictures) picture.canvas.hidden = other !== number;
    this.said.textContent = `Showing ${this.data[number].dataset.name}.`;
    delete this.box.dataset.drawn;
    this.redraw();
  }

  /** In the next frame, however often it is asked for; until there is an order, again and again. */
  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      const picture = this.pictures?.get(this.chosen);
      if (!picture) return;
      this.table.place(picture.camera);
      picture.draw();
      if (picture.sorted) this.box.dataset.drawn = String(this.chosen);
      else this.redraw();
    });
  }

  move(change) {
    change(this.table);
    this.redraw();
  }

  key(event) {
    const sign = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (sign && event.shiftKey) this.move((table) => table.pan(0.05 * sign[0], 0.05 * sign[1]));
    else if (sign) this.move((table) => table.turn(TURN * sign[0], TURN * sign[1]));
    else if (event.key === "+" || event.key === "=") this.move((table) => table.zoom(1 / 1.1));
    else if (event.key === "-" || event.key === "_") this.move((table) => table.zoom(1.1));
    else if (event.key === "0" || event.key === "Home") this.move((table) => table.rest());
    else if (event.key === "Escape") this.close();
    else return;
    event.preventDefault();
  }

  /** Mouse, pen and fingers: one turns, two move and zoom; so do the wheel and the right button. */
  listen() {
    const fingers = new Map();
    const middle = () => times([...fingers.values()].reduce(plus), 1 / fingers.size);
    const spread = () => {
      const [a, b] = [...fingers.values()];
      return b ? Math.hypot(a[0] - b[0], a[1] - b[1]) : 1;
    };
    const { frame } = this;
    frame.addEventListener("keydown", (event) => this.pictures && event.target === frame && this.key(event));
    frame.addEventListener("contextmenu", (event) => this.pictures && event.preventDefault());
    frame.addEventListener("pointerdown", (event) => {
      if (!this.pictures || event.target.closest("button")) return;
      frame.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    frame.addEventListener("pointermove", (event) => {
      if (!this.pictures || !fingers.has(event.pointerId)) return;
      const [from, wide] = [middle(), spread()];
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      const [x, y] = times(plus(middle(), times(from, -1)), 1 / frame.clientWidth);
      const focal = this.start.K[0][0];
      this.move((table) => {
        if (fingers.size > 1 || event.shiftKey || event.buttons === 2) table.pan(-x / focal, -y / focal);
        else table.turn(-3 * x, -3 * y);
        if (fingers.size > 1) table.zoom(wide / spread());
      });
    });
    for (const end of ["pointerup", "pointercancel"]) {
      frame.addEventListener(end, (event) => fingers.delete(event.pointerId));
    }
    frame.addEventListener("wheel", (event) => {
      if (!this.pictures || document.activeElement !== frame) return;
      event.preventDefault();
      this.move((table) => table.zoom(Math.exp(0.001 * event.deltaY)));
    }, { passive: false });
  }
}

for (const box of document.querySelectorAll(".turn")) viewers.push(new Viewer(box));
