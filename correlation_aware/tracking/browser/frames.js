// Sources of frames: every frame of a video file, what a camera shows, or a file as the browser plays it.
//
// A source has `name`, `canvas` with the current frame, `count` (frames, if known), and `note`, a remark for the user.
// `next()` draws the next frame and gives {index, time in seconds}, or null at the end; `close()` ends it.
import {ALL_FORMATS, BlobSource, Input, VideoSampleSink} from "./vendor/mediabunny.js";

class Canvas {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.context = this.canvas.getContext("2d", {willReadFrequently: true});
    this.index = -1;
    this.note = "";
  }

  get width() { return this.canvas.width; }

  get height() { return this.canvas.height; }

  // RGBA of a part of the current frame, for tracker.js.
  read(x, y, width, height) { return this.context.getImageData(x, y, width, height).data; }

  // Counts frames from the current one.
  restart() {
    this.index = 0;
    this.first = this.now;
    return {index: 0, time: 0};
  }

  // Draws a frame by `draw`, a function of the context.
  show(width, height, now, draw) {
    if (this.width !== width || this.height !== height) Object.assign(this.canvas, {width, height});
    draw(this.context);
    this.now = now;
    this.first ??= now;
    return {index: ++this.index, time: now - this.first};
  }
}

// All frames of a file, one after the other, decoded with WebCodecs.
class DecodedFrames extends Canvas {
  static async open(file) {
    const frames = new DecodedFrames();
    frames.input = new Input({source: new BlobSource(file), formats: ALL_FORMATS});
    const track = await frames.input.getPrimaryVideoTrack();
    if (!track || !(await track.canDecode())) throw new Error("no video that WebCodecs decodes");
    frames.count = (await track.computePacketStats()).packetCount;
    frames.samples = new VideoSampleSink(track).samples();
    return frames;
  }

  async next() {
    const {value, done} = await this.samples.next();
    if (done) return null;
    const {displayWidth: width, displayHeight: height} = value;
    const shown = this.show(width, height, value.timestamp, context => value.draw(context, 0, 0, width, height));
    value.close();
    return shown;
  }

  async close() {
    await this.samples.return();
    this.input.dispose();
  }
}

// Frames of a video element: of a camera the newest one, of a file those that the browser shows.
class PlayedFrames extends Canvas {
  static async open(setUp, live) {
    const frames = new PlayedFrames();
    Object.assign(frames, {live, video: Object.assign(document.createElement("video"), {muted: true, playsInline: true, preload: "auto"})});
    await new Promise((resolve, reject) => {
      frames.video.onerror = () => reject(new Error("the browser does not play it"));
      frames.presented(resolve, "loadeddata");  // at `loadeddata` alone the frame can still be blank
      setUp(frames.video);
      if (live) frames.video.play().catch(reject);
    });
    return frames;
  }

  // Calls a function when the next frame is there; `event` is what older browsers have for it.
  presented(done, event) {
    if (this.video.requestVideoFrameCallback) this.video.requestVideoFrameCallback(done);
    else this.video.addEventListener(event, done, {once: true});
  }

  async next() {
    const {video} = this;
    if (this.ended) return null;
    if (this.index >= 0 || this.live) {  // the first frame of a file is there
      const shown = new Promise(resolve => {
        this.presented(resolve, "timeupdate");
        this.stop = resolve;
        video.onended = () => { this.ended = true; resolve(); };
      });
      await video.play();
      await shown;
      if (!this.live) video.pause();
      if (this.ended) return null;
    }
    const {videoWidth: width, videoHeight: height} = video;
    return this.show(width, height, video.currentTime, context => context.drawImage(video, 0, 0));
  }

  close() {
    this.ended = true;
    this.stop?.();
    this.video.pause();
    for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
    if (this.video.src) URL.revokeObjectURL(this.video.src);
  }
}

export async function openFile(file) {
  try {
    if ("VideoDecoder" in window) return Object.assign(await DecodedFrames.open(file), {name: file.name});
  } catch (error) {
    console.info(error);  // what WebCodecs does not decode may still play
  }
  try {
    const played = await PlayedFrames.open(video => { video.src = URL.createObjectURL(file); }, false);
    const note = "Frames may be skipped: this browser gives single frames of a file only on https or localhost, and not of all formats.";
    return Object.assign(played, {name: file.name, note});
  } catch {
    throw new Error(`This browser cannot play ${file.name}. Convert it to mp4 (H.264) or webm.`);
  }
}

export const hasCamera = Boolean(navigator.mediaDevices?.getUserMedia);

export async function openCamera() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
  } catch (error) {
    if (error.name === "NotAllowedError") throw new Error("The camera was refused: allow it for this page in the browser.");
    throw new Error(error.name === "NotFoundError" ? "No camera was found." : "The camera cannot be opened: another program may use it.");
  }
  const frames = await PlayedFrames.open(video => { video.srcObject = stream; }, true);
  for (const track of stream.getTracks()) track.onended = () => { frames.ended = true; frames.stop?.(); };
  return Object.assign(frames, {name: "camera"});
}
