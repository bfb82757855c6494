"""The page of `pmsplat view`: splats, cameras, our renderings, a recorder (through viser).

viser (https://viser.studio) draws the splats in the browser, in their mean colour. `rasterize`
draws everything else for the browser's camera, and the page shows it as the background. One thread,
the painter, draws; the callbacks of the page only notify it that something changed.
"""

import contextlib
import io
import logging
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..geometry import camera, gaussian, se3
from ..types import Cameras
from .address import check_address, make_port_error
from .recorder import Recorder
from .stage import CONFIDENCE, DEPTH, EXTENT, Pace, Stage, make_camera, select_for_browser

if TYPE_CHECKING:
    import viser

SPLATS: str = "Splats"
MOVING, STILL = 0.15, 1.5  # seconds to draw a picture while the camera moves, and while it rests
MIN_GROWTH = 1.2  # least ratio of heights for which a sharper picture is drawn
SETTLED = 0.3  # seconds without a change after which the camera counts as resting
LARGEST = (1080, 1920)  # pixels: largest picture of the page
NEAR = 0.05  # near of the page's camera if the scenes have none; their radius is EXTENT
FRUSTUM = 0.03, 0.08  # least and greatest height of a drawn camera, in radii of the scene
CLEAR = 1.5  # distance to a drawn camera at which it is hidden, in its heights
THUMBNAIL = 96  # pixels: height of the picture on a drawn camera
CAMERA_COLOR = 90, 160, 255


@dataclass(frozen=True)
class Setting:
    """How the page opens and where it is served.

    `start` is the first camera, in the unit of the scenes; `up` is the upward direction. Recordings
    are saved as `video`, NAME.mp4, then NAME-2.mp4, with `size` (height, width). At most `most`
    Gaussians of a scene are sent to the browser. Port 0 means any free port.
    """

    start: Cameras
    up: Float[Tensor, "3"]
    video: Path
    size: tuple[int, int] = (720, 1280)
    most: int = 2_000_000
    host: str = "127.0.0.1"
    port: int = 8080


class Page:
    """A page that is served until `close`; all browsers share its state, except the camera.

    Raises UserError if viser is not installed or the address is not available.
    """

    def __init__(self, stage: Stage, setting: Setting) -> None:
        self.stage, self.setting = stage, setting
        self._changed, self._version, self._closing = threading.Condition(), 0, False
        self._pace = {seconds: Pace(seconds) for seconds in (MOVING, STILL)}
        self._near = self._find_near()
        self.server = _start_server(setting.host, setting.port)
        self.recorder = Recorder(self.server, stage, setting.video, setting.size)
        self._build()
        self._painter = threading.Thread(target=self._run_painter, name="painter", daemon=True)
        self._painter.start()

    @property
    def address(self) -> str:
        host = self.setting.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server.get_port()}"

    def close(self) -> None:
        """Stops serving, drawing and recording; an unfinished recording leaves no file."""
        self.recorder.stop()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._painter.join()
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def request_redraw(self) -> None:
        """Notifies the painter that the picture has changed."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def look_through(self, client: "viser.ClientHandle", index: int, view: int) -> None:
        """Moves a browser's camera to a camera of a scene, at the current pose of the scene."""
        exhibit = self.stage.exhibits[index]
        assert exhibit.cameras is not None
        c2w = self.stage.poses[index] @ exhibit.cameras.c2w[0, view]
        across, down = camera.field_of_view(exhibit.cameras.K[0, view]).tolist()
        ahead = (self.stage.poses[index] @ _homogeneous(self.stage.middles[index]))[:3]
        depth = ((ahead - c2w[:3, 3]) @ c2w[:3, 2]).item()
        # Choose a field of view that shows the full width of its picture.
        fits = math.atan(math.tan(across / 2) / client.camera.aspect) * 2
        with client.atomic():
            client.camera.position = c2w[:3, 3].double().numpy()
            client.camera.wxyz = gaussian.rotation_to_quat(c2w[:3, :3]).double().numpy()
            away = max(depth, 0.1 * EXTENT)
            client.camera.look_at = (c2w[:3, 3] + away * c2w[:3, 2]).double().numpy()
            client.camera.fov = max(down, fits)

    def get_camera(self, client: "viser.ClientHandle", size: tuple[int, int]) -> Cameras:
        """Returns a browser's camera for a picture of a size, in the scaled unit of the stage."""
        view = client.camera
        rotation = gaussian.quat_to_rotation(torch.from_numpy(np.asarray(view.wxyz)))
        c2w = se3.compose(rotation, torch.from_numpy(np.asarray(view.position)))
        return make_camera(c2w, view.fov, size, self._near)

    def _find_near(self) -> float:
        known = [
            exhibit.cameras.near.min().item()
            for exhibit in self.stage.exhibits
            if exhibit.cameras is not None
        ]
        return min(known, default=NEAR)

    def _build(self) -> None:
        # Set the theme and the first camera.
        server, start = self.server, self.setting.start.scaled(1 / self.stage.unit)
        server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        server.scene.set_up_direction(self.setting.up.double().numpy())
        c2w, first = start.c2w[0, 0].double(), server.initial_camera
        away = ((self.stage.middles[0].double() - c2w[:3, 3]) @ c2w[:3, 2]).clamp_min(0.1 * EXTENT)
        first.position, first.up = c2w[:3, 3].numpy(), -c2w[:3, 1].numpy()
        first.look_at = (c2w[:3, 3] + away * c2w[:3, 2]).numpy()
        first.fov = camera.field_of_view(start.K[0, 0])[1].item()
        # Add the controls.
        with server.gui.add_folder("Picture"):
            self.kind = server.gui.add_dropdown(
                "Show", (SPLATS, *self.stage.kinds), initial_value=SPLATS
            )
            self.legend = server.gui.add_markdown("")
            self.frusta = server.gui.add_checkbox("Cameras", True)
        self.kind.on_update(lambda _: self.show())
        self.frusta.on_update(lambda _: self.show())
        self.rooms = [Room(self, i) for i in range(len(self.stage.exhibits))]
        if len(self.rooms) > 1:
            self.apart = server.gui.add_slider(
                "Apart", min=0.0, max=2.0, step=0.05, initial_value=0.0
            )
            self.apart.on_update(lambda _: self._lay_out(start.c2w[0, 0, :3, 0]))
        self.recorder.add_controls(self.get_camera, lambda: self.kind.value)
        server.on_client_connect(self._welcome)

    def _welcome(self, client: "viser.ClientHandle") -> None:
        client.camera.on_update(lambda _: self.request_redraw())
        self.request_redraw()

    def show(self) -> None:
        """Shows and hides everything as the controls say."""
        for room in self.rooms:
            room.show()
        self.recorder.show(self.frusta.value)
        if self.kind.value == SPLATS:
            self.legend.content = ""
        self.request_redraw()

    def _lay_out(self, right: Float[Tensor, "3"]) -> None:
        """Moves all scenes into a row; their rotations stay."""
        for i, room in enumerate(self.rooms):
            room.move(self.apart.value * 2 * EXTENT * i * right)

    def _run_painter(self) -> None:
        """Draws in the painter's thread: small pictures during changes, then sharper ones."""
        drawn = 0
        while True:
            self._wait_for_change(None, drawn)
            if self._closing:
                return
            drawn = self._version
            self._paint(MOVING)
            if not self._wait_for_change(SETTLED, drawn):
                tasks = (lambda: self._paint(STILL), self._add_thumbnail)
                while not self._wait_for_change(0, drawn) and any(task() for task in tasks):
                    pass

    def _wait_for_change(self, seconds: float | None, drawn: int) -> bool:
        """Waits for a version newer than `drawn`, or `close`; returns whether one came in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._closing or self._version != drawn, timeout=seconds
            )

    def _paint(self, seconds: float) -> bool:
        """Draws for each browser in about `seconds`; returns whether sharper ones are possible."""
        kind, pace, more = self.kind.value, self._pace[seconds], False
        clients = list(self.server.get_clients().values())
        for room in self.rooms:
            room.hide_cameras_near([np.asarray(client.camera.position) for client in clients])
        for client in clients:
            canvas = (client.camera.image_height, client.camera.image_width)
            if kind == SPLATS:
                client.scene.set_background_image(None)
            elif min(canvas) > 0:
                shrink = min(
                    1.0, *(most / side for most, side in zip(LARGEST, canvas, strict=True))
                )
                largest = (round(canvas[0] * shrink), round(canvas[1] * shrink))
                size = pace.size(largest)
                pace.measure(size, lambda client=client, size=size: self._send(client, size, kind))
                more = more or pace.size(largest)[0] > MIN_GROWTH * size[0]
        return more

    def _send(self, client: "viser.ClientHandle", size: tuple[int, int], kind: str) -> None:
        image, (near, far) = self.stage.draw_picture(self.get_camera(client, size), size, kind)
        if kind != self.kind.value or not self._is_connected(client):
            return  # meanwhile the page shows something else, or the browser has left
        client.scene.set_background_image(image, format="jpeg", jpeg_quality=90)
        legend = {
            DEPTH: f"Depth from {near:.3g} (yellow) to {far:.3g} (violet).",
            CONFIDENCE: "Confidence from 0 (violet) to 1 (yellow).",
        }.get(kind, "")
        if self.legend.content != legend:
            self.legend.content = legend

    def _is_connected(self, client: "viser.ClientHandle") -> bool:
        return client.client_id in self.server.get_clients()

    def _add_thumbnail(self) -> bool:
        """Draws the next missing thumbnail of any scene; returns whether one was missing."""
        return any(room.add_thumbnail() for room in self.rooms)


class Room:
    """One scene on the page: its node in the scene tree, its cameras, its controls."""

    def __init__(self, page: Page, index: int) -> None:
        self.page, self.index = page, index
        exhibit, server = page.stage.exhibits[index], page.server
        self._middle = page.stage.middles[index]
        # Add the splats and a handle to move them.
        root = f"/{index + 1} {exhibit.name.replace('/', '_')}"
        self.frame = server.scene.add_frame(root, show_axes=False)
        splats = select_for_browser(exhibit.gaussians, page.setting.most)
        self.splats = server.scene.add_gaussian_splats(
            f"{root}/splats", splats.centers, splats.covariances, splats.rgbs, splats.opacities
        )
        self.handle = server.scene.add_transform_controls(
            f"/move {index + 1}", scale=0.4 * EXTENT, visible=False, depth_test=False,
            position=self._middle.double().numpy(),
        )  # fmt: skip
        self.handle.on_update(lambda _: self._follow_handle())
        # Add the controls and the cameras.
        with server.gui.add_folder(f"{exhibit.name}"):
            self.visible = server.gui.add_checkbox("Visible", True)
            self.drag = server.gui.add_checkbox("Drag", False, hint="arrows and rings to move it")
            self._add_cameras(root)
        self.visible.on_update(lambda _: page.show())
        self.drag.on_update(lambda _: page.show())

    def _add_cameras(self, root: str) -> None:
        exhibit, server = self.page.stage.exhibits[self.index], self.page.server
        self.frusta: list[Any] = []
        self.group = server.scene.add_frame(f"{root}/cameras", show_axes=False)
        self.missing: list[int] = []
        if exhibit.cameras is None:
            return
        c2w = exhibit.cameras.c2w[0]
        self._height = _choose_frustum_height(c2w[:, :3, 3])
        for i, name in enumerate(exhibit.names):
            across, down = camera.field_of_view(exhibit.cameras.K[0, i]).tolist()
            frustum = server.scene.add_camera_frustum(
                f"{root}/cameras/{i:04d} {name.replace('/', '_')}",
                fov=down,
                aspect=math.tan(across / 2) / math.tan(down / 2),
                scale=self._height,
                thickness=1.5,
                thickness_units="screen",
                color=CAMERA_COLOR,
                image=exhibit.thumbnails[i],
                wxyz=gaussian.rotation_to_quat(c2w[i, :3, :3]).double().numpy(),
                position=c2w[i, :3, 3].double().numpy(),
            )
            frustum.on_click(lambda event, i=i: self.page.look_through(event.client, self.index, i))
            self.frusta.append(frustum)
            if exhibit.thumbnails[i] is None:
                self.missing.append(i)
        self.go_to = server.gui.add_dropdown("Go to", exhibit.names)
        self.go_to.on_update(lambda event: self._go(event.client))

    def _go(self, client: "viser.ClientHandle | None") -> None:
        if client is not None:
            names = self.page.stage.exhibits[self.index].names
            self.page.look_through(client, self.index, names.index(self.go_to.value))

    def show(self) -> None:
        """Shows and hides the scene and its cameras as the controls say."""
        visible, page = self.visible.value, self.page
        page.stage.show(self.index, visible)
        self.splats.visible = visible and page.kind.value == SPLATS
        self.group.visible = visible and page.frusta.value
        self.handle.visible = visible and self.drag.value

    def hide_cameras_near(self, eyes: list[np.ndarray]) -> None:
        """Hides drawn cameras near an eye point, because they would cover its view."""
        cameras = self.page.stage.exhibits[self.index].cameras
        if cameras is None or not eyes:
            return
        centers = se3.transform(self.page.stage.poses[self.index], cameras.c2w[0, :, :3, 3])
        nearest = torch.cdist(centers, torch.from_numpy(np.stack(eyes)).to(centers)).amin(dim=-1)
        for frustum, distance in zip(self.frusta, nearest.tolist(), strict=True):
            if frustum.visible != (distance > CLEAR * self._height):
                frustum.visible = not frustum.visible

    def move(self, offset: Float[Tensor, "3"]) -> None:
        """Moves the scene to `offset` from its original position; its rotation stays."""
        self.handle.position = (self._middle + offset).double().numpy()
        self._follow_handle()

    def _follow_handle(self) -> None:
        """Moves the scene to the pose of its handle, which is at the middle of the scene."""
        rotation = gaussian.quat_to_rotation(torch.from_numpy(np.asarray(self.handle.wxyz)))
        middle = self._middle.to(rotation)
        position = torch.from_numpy(np.asarray(self.handle.position)) - rotation @ middle
        self.frame.wxyz, self.frame.position = self.handle.wxyz, position.numpy()
        self.page.stage.place(self.index, se3.compose(rotation, position).float())
        self.page.request_redraw()

    def add_thumbnail(self) -> bool:
        """Draws the next missing thumbnail; returns whether one was missing."""
        if not self.missing:
            return False
        exhibit, i = self.page.stage.exhibits[self.index], self.missing.pop(0)
        assert exhibit.cameras is not None
        self.frusta[i].image = self.page.stage.draw_thumbnail(self.index, i, THUMBNAIL)
        return True


def _start_server(host: str, port: int) -> "viser.ViserServer":
    """Starts a server at exactly this address; viser itself would silently take another port."""
    try:
        import viser
    except ImportError as error:
        raise UserError(
            "the page needs the package viser, which is not installed",
            "viser 1.1",
            'install it with `pip install "pmsplat[view]"`',
        ) from error

    class Local(viser.ViserServer):
        def request_share_url(self, verbose: bool = True) -> None:
            """Does nothing: viser's tunnel would show the scene to the whole internet."""

    check_address(host, port)
    logging.getLogger("websockets.server").addFilter(_is_worth_logging)
    with contextlib.redirect_stdout(io.StringIO()):  # viser prints a box of addresses
        server = Local(host=host, port=port, label="pmsplat", verbose=False)
    if port and server.get_port() != port:
        server.stop()
        raise make_port_error(port)
    return server


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Filters out the traceback for a client that connects and leaves at once."""
    return record.getMessage() != "opening handshake failed"


def _choose_frustum_height(centers: Float[Tensor, "view 3"]) -> float:
    """Returns the height of drawn cameras at which neighbours do not hide each other."""
    least, most = (EXTENT * share for share in FRUSTUM)
    if len(centers) < 2:
        return most
    distances = torch.cdist(centers, centers).fill_diagonal_(math.inf).amin(dim=-1)
    return min(max(0.4 * distances.median().item(), least), most)


def _homogeneous(point: Float[Tensor, "3"]) -> Float[Tensor, "4"]:
    return torch.cat([point, torch.ones_like(point[:1])])
