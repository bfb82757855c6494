"""The page of `pmsplat view`: splats, cameras, our renderings, a recorder (through viser).

viser (https://viser.studio) draws the splats in the browser, in their mean colour; everything else
is drawn by `rasterize` for the camera that the browser tells, and set as its background. One thread
does that; the callbacks of the page only say that something changed.
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
from ._address import check_address, taken
from .recorder import Recorder
from .stage import DEPTH, EXTENT, KINDS, Pace, Stage, for_browser, looking

if TYPE_CHECKING:
    import viser

SPLATS: str = "Splats"
MOVING, STILL = 0.15, 1.5  # seconds that a picture may take while the camera moves, and after
GROWN = 1.2  # times as high is so much sharper that it is worth another drawing
SETTLED = 0.3  # seconds without a change after which the camera stands still
LARGEST = (1080, 1920)  # pixels: no picture of the page is larger
NEAR = 0.05  # of the page's own camera where no other is known: EXTENT is the radius of the scene
FRUSTUM = 0.03, 0.08  # smallest and largest height of a drawn camera, in radii of the scene
CLEAR = 1.5  # heights of a drawn camera within which it is hidden from who looks
THUMBNAIL = 96  # pixels: height of the picture on a drawn camera
CAMERA_COLOR = 90, 160, 255


@dataclass(frozen=True)
class Setting:
    """How the page opens and where it is served; `start` looks at the scenes, in their own unit.

    `up` points upwards; `video` is where recordings go: NAME.mp4, then NAME-2.mp4; `size` is theirs
    (height, width). `most` Gaussians of a scene are sent to the browser. Port 0 is any free one.
    """

    start: Cameras
    up: Float[Tensor, "3"]
    video: Path
    size: tuple[int, int] = (720, 1280)
    most: int = 2_000_000
    host: str = "127.0.0.1"
    port: int = 8080


class Page:
    """A served page, until `close`. Everything on it is shared by all browsers but the camera.

    Raises UserError where viser is missing or the address cannot be had.
    """

    def __init__(self, stage: Stage, setting: Setting) -> None:
        self.stage, self.setting = stage, setting
        self._changed, self._version, self._closing = threading.Condition(), 0, False
        self._pace = {seconds: Pace(seconds) for seconds in (MOVING, STILL)}
        self._near = self._nearest()
        self.server = _serve(setting.host, setting.port)
        self.recorder = Recorder(self.server, stage, setting.video, setting.size)
        self._build()
        self._painter = threading.Thread(target=self._paint_on, name="painter", daemon=True)
        self._painter.start()

    @property
    def address(self) -> str:
        host = self.setting.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server.get_port()}"

    def close(self) -> None:
        """Stops serving, drawing and recording; what is half recorded leaves no file."""
        self.recorder.stop()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._painter.join()
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def change(self) -> None:
        """Something that is drawn is different now."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def look(self, client: "viser.ClientHandle", index: int, view: int) -> None:
        """Moves a browser's camera to one of the cameras of a scene, where that stands now."""
        exhibit = self.stage.exhibits[index]
        assert exhibit.cameras is not None
        c2w = self.stage.poses[index] @ exhibit.cameras.c2w[0, view]
        across, down = camera.field_of_view(exhibit.cameras.K[0, view]).tolist()
        ahead = (self.stage.poses[index] @ _homogeneous(self.stage.middles[index]))[:3]
        depth = ((ahead - c2w[:3, 3]) @ c2w[:3, 2]).item()
        fits = math.atan(math.tan(across / 2) / client.camera.aspect) * 2  # all of its picture
        with client.atomic():
            client.camera.position = c2w[:3, 3].double().numpy()
            client.camera.wxyz = gaussian.rotation_to_quat(c2w[:3, :3]).double().numpy()
            away = max(depth, 0.1 * EXTENT)
            client.camera.look_at = (c2w[:3, 3] + away * c2w[:3, 2]).double().numpy()
            client.camera.fov = max(down, fits)

    def seen(self, client: "viser.ClientHandle", size: tuple[int, int]) -> Cameras:
        """A browser's camera, for a picture of that size, in the scaled unit of the stage."""
        view = client.camera
        rotation = gaussian.quat_to_rotation(torch.from_numpy(np.asarray(view.wxyz)))
        c2w = se3.compose(rotation, torch.from_numpy(np.asarray(view.position)))
        return looking(c2w, view.fov, size, self._near)

    def _nearest(self) -> float:
        known = [
            exhibit.cameras.near.min().item()
            for exhibit in self.stage.exhibits
            if exhibit.cameras is not None
        ]
        return min(known, default=NEAR)

    def _build(self) -> None:
        server, start = self.server, self.setting.start.scaled(1 / self.stage.unit)
        server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        server.scene.set_up_direction(self.setting.up.double().numpy())
        c2w, first = start.c2w[0, 0].double(), server.initial_camera
        away = ((self.stage.middles[0].double() - c2w[:3, 3]) @ c2w[:3, 2]).clamp_min(0.1 * EXTENT)
        first.position, first.up = c2w[:3, 3].numpy(), -c2w[:3, 1].numpy()
        first.look_at = (c2w[:3, 3] + away * c2w[:3, 2]).numpy()
        first.fov = camera.field_of_view(start.K[0, 0])[1].item()
        with server.gui.add_folder("Picture"):
            self.kind = server.gui.add_dropdown("Show", (SPLATS, *KINDS), initial_value=SPLATS)
            self.legend = server.gui.add_markdown("")
            self.frusta = server.gui.add_checkbox("Cameras", True)
        self.kind.on_update(lambda _: self._show())
        self.frusta.on_update(lambda _: self._show())
        self.rooms = [Room(self, i) for i in range(len(self.stage.exhibits))]
        if len(self.rooms) > 1:
            self.apart = server.gui.add_slider(
                "Apart", min=0.0, max=2.0, step=0.05, initial_value=0.0
            )
            self.apart.on_update(lambda _: self._spread(start.c2w[0, 0, :3, 0]))
        self.recorder.build(self.seen, lambda: self.kind.value)
        server.on_client_connect(self._welcome)

    def _welcome(self, client: "viser.ClientHandle") -> None:
        client.camera.on_update(lambda _: self.change())
        self.change()

    def _show(self) -> None:
        for room in self.rooms:
            room.show()
        self.recorder.show(self.frusta.value)
        if self.kind.value == SPLATS:
            self.legend.content = ""
        self.change()

    def _spread(self, right: Float[Tensor, "3"]) -> None:
        """All scenes in a row, turned as they are."""
        for i, room in enumerate(self.rooms):
            room.move(self.apart.value * 2 * EXTENT * i * right)

    def _paint_on(self) -> None:
        """The painter's thread: small pictures while something changes, then sharper ones."""
        drawn = 0
        while True:
            self._changes_within(None, drawn)
            if self._closing:
                return
            drawn = self._version
            self._paint(MOVING)
            if not self._changes_within(SETTLED, drawn):
                work = (lambda: self._paint(STILL), self._add_thumbnail)
                while not self._changes_within(0, drawn) and any(more() for more in work):
                    pass

    def _changes_within(self, seconds: float | None, drawn: int) -> bool:
        """Waits for something newer than version `drawn`, or the end; whether it came."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._closing or self._version != drawn, timeout=seconds
            )

    def _paint(self, seconds: float) -> bool:
        """Draws for every browser in about so many seconds; whether more can be seen in that."""
        kind, pace, more = self.kind.value, self._pace[seconds], False
        clients = list(self.server.get_clients().values())
        for room in self.rooms:
            room.step_aside([np.asarray(client.camera.position) for client in clients])
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
                pace.timed(size, lambda client=client, size=size: self._send(client, size, kind))
                more = more or pace.size(largest)[0] > GROWN * size[0]
        return more

    def _send(self, client: "viser.ClientHandle", size: tuple[int, int], kind: str) -> None:
        image, (near, far) = self.stage.picture(self.seen(client, size), size, kind)
        if kind != self.kind.value or not self._is_here(client):
            return  # drawing took a while: the page shows something else now, or was closed
        client.scene.set_background_image(image, format="jpeg", jpeg_quality=90)
        told = f"Depth from {near:.3g} (yellow) to {far:.3g} (violet)." if kind == DEPTH else ""
        if self.legend.content != told:
            self.legend.content = told

    def _is_here(self, client: "viser.ClientHandle") -> bool:
        return client.client_id in self.server.get_clients()

    def _add_thumbnail(self) -> bool:
        """Draws the next camera that has no picture; whether there was one."""
        return any(room.add_thumbnail() for room in self.rooms)


class Room:
    """One scene on the page: its node in the scene tree, its cameras, its controls."""

    def __init__(self, page: Page, index: int) -> None:
        self.page, self.index = page, index
        exhibit, server = page.stage.exhibits[index], page.server
        self._middle = page.stage.middles[index]
        root = f"/{index + 1} {exhibit.name.replace('/', '_')}"
        self.frame = server.scene.add_frame(root, show_axes=False)
        splats = for_browser(exhibit.gaussians, page.setting.most)
        self.splats = server.scene.add_gaussian_splats(
            f"{root}/splats", splats.centers, splats.covariances, splats.rgbs, splats.opacities
        )
        self.handle = server.scene.add_transform_controls(
            f"/move {index + 1}", scale=0.4 * EXTENT, visible=False, depth_test=False,
            position=self._middle.double().numpy(),
        )  # fmt: skip
        self.handle.on_update(lambda _: self._moved())
        with server.gui.add_folder(f"{exhibit.name}"):
            self.visible = server.gui.add_checkbox("Visible", True)
            self.drag = server.gui.add_checkbox("Drag", False, hint="arrows and rings to move it")
            self._add_cameras(root)
        self.visible.on_update(lambda _: page._show())
        self.drag.on_update(lambda _: page._show())

    def _add_cameras(self, root: str) -> None:
        exhibit, server = self.page.stage.exhibits[self.index], self.page.server
        self.frusta: list[Any] = []
        self.group = server.scene.add_frame(f"{root}/cameras", show_axes=False)
        self.missing: list[int] = []
        if exhibit.cameras is None:
            return
        c2w = exhibit.cameras.c2w[0]
        self._height = _apart(c2w[:, :3, 3])
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
            frustum.on_click(lambda event, i=i: self.page.look(event.client, self.index, i))
            self.frusta.append(frustum)
            if exhibit.thumbnails[i] is None:
                self.missing.append(i)
        self.go_to = server.gui.add_dropdown("Go to", exhibit.names)
        self.go_to.on_update(lambda event: self._go(event.client))

    def _go(self, client: "viser.ClientHandle | None") -> None:
        if client is not None:
            names = self.page.stage.exhibits[self.index].names
            self.page.look(client, self.index, names.index(self.go_to.value))

    def show(self) -> None:
        """Shows what the checkboxes say."""
        visible, page = self.visible.value, self.page
        page.stage.show(self.index, visible)
        self.splats.visible = visible and page.kind.value == SPLATS
        self.group.visible = visible and page.frusta.value
        self.handle.visible = visible and self.drag.value

    def step_aside(self, eyes: list[np.ndarray]) -> None:
        """Hides the cameras in which somebody stands, whose view they would cover."""
        cameras = self.page.stage.exhibits[self.index].cameras
        if cameras is None or not eyes:
            return
        centres = se3.transform(self.page.stage.poses[self.index], cameras.c2w[0, :, :3, 3])
        apart = torch.cdist(centres, torch.from_numpy(np.stack(eyes)).to(centres)).amin(dim=-1)
        for frustum, distance in zip(self.frusta, apart.tolist(), strict=True):
            if frustum.visible != (distance > CLEAR * self._height):
                frustum.visible = not frustum.visible

    def move(self, offset: Float[Tensor, "3"]) -> None:
        """The scene `offset` from where it was made, turned as it is."""
        self.handle.position = (self._middle + offset).double().numpy()
        self._moved()

    def _moved(self) -> None:
        """The scene follows its handle, which stands in its middle."""
        rotation = gaussian.quat_to_rotation(torch.from_numpy(np.asarray(self.handle.wxyz)))
        middle = self._middle.to(rotation)
        position = torch.from_numpy(np.asarray(self.handle.position)) - rotation @ middle
        self.frame.wxyz, self.frame.position = self.handle.wxyz, position.numpy()
        self.page.stage.place(self.index, se3.compose(rotation, position).float())
        self.page.change()

    def add_thumbnail(self) -> bool:
        """Draws the next camera that has no picture; whether there was one."""
        if not self.missing:
            return False
        exhibit, i = self.page.stage.exhibits[self.index], self.missing.pop(0)
        assert exhibit.cameras is not None
        self.frusta[i].image = self.page.stage.thumbnail(self.index, i, THUMBNAIL)
        return True


def _serve(host: str, port: int) -> "viser.ViserServer":
    """A server at exactly that address; viser itself would take another port in silence."""
    try:
        import viser
    except ImportError as error:
        raise UserError(
            "the page is served by viser, which is not installed",
            "viser 1.1",
            'install it: `pip install "pmsplat[view]"`',
        ) from error

    class Local(viser.ViserServer):
        def request_share_url(self, verbose: bool = True) -> None:
            """Refuses: viser's tunnel would show the scene to the whole internet."""

    check_address(host, port)
    logging.getLogger("websockets.server").addFilter(_worth_telling)
    with contextlib.redirect_stdout(io.StringIO()):  # it draws a box of addresses
        server = Local(host=host, port=port, label="pmsplat", verbose=False)
    if port and server.get_port() != port:
        server.stop()
        raise taken(port)
    return server


def _worth_telling(record: logging.LogRecord) -> bool:
    """Not who connects and leaves without a word, for which there would be a traceback."""
    return record.getMessage() != "opening handshake failed"


def _apart(centres: Float[Tensor, "view 3"]) -> float:
    """How high to draw cameras so that neighbours do not hide each other."""
    least, most = (EXTENT * share for share in FRUSTUM)
    if len(centres) < 2:
        return most
    distances = torch.cdist(centres, centres).fill_diagonal_(math.inf).amin(dim=-1)
    return min(max(0.4 * distances.median().item(), least), most)


def _homogeneous(point: Float[Tensor, "3"]) -> Float[Tensor, "4"]:
    return torch.cat([point, torch.ones_like(point[:1])])
