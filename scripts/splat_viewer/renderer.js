// The parts of gsplat.js that src/pmsplat/view/pages/splats.js draws with.
export { Camera, CameraData, Matrix4, Quaternion, Scene, Splat, SplatData, Vector3, WebGLRenderer } from "gsplat";
