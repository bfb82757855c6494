"""The page itself (through gradio): what a visitor sees and may press."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import UserError
from ...io.files import is_full, temporary_folder
from ...view.address import make_port_error
from ...view.pages.markup import Markup, join, tag
from ._examples import Example, list_examples
from ._fragments import describe_error, draw_step, explain, introduce, list_said, say
from ._intake import describe_uploads
from ._job import Job, State, Stopped
from ._limits import Limits
from ._results import Results
from ._room import MOST_WAITING, Request, Room

if TYPE_CHECKING:
    from . import Options

STYLE = Path(__file__).with_name("app.css")
DETAILS = {"Small, fast": 256, "Medium": 384, "Large, slow": 512}  # pixels of the longer side
TEMPORARY = "GRADIO_TEMP_DIR"  # where gradio keeps files, by its documentation
CHECKED = 30, 3600  # seconds between two looks of gradio for files so old, should one be left
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Arial", "sans-serif")
MONO = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

Update = dict[Any, Any]
"""Components and what becomes of them."""


@dataclass(frozen=True, eq=False)
class _Parts:
    """The components of the page that change."""

    files: gr.File
    views: gr.Slider
    detail: gr.Radio
    go: gr.Button
    stop: gr.Button
    status: gr.HTML
    understood: gr.HTML
    results: gr.Column
    viewer: gr.HTML
    video: gr.Video
    depth: gr.HTML
    compared: gr.HTML
    advice: gr.HTML
    downloads: gr.File


class Page:
    """The app while it is served, until `close`."""

    def __init__(self, address: str, root: Path, closing: ExitStack) -> None:
        self.address, self.root, self._closing = address, root, closing

    def close(self) -> None:
        """Stops serving and working, and deletes all that visitors brought and got."""
        self._closing.close()


def serve(options: "Options") -> Page:
    """Serves the page; UserError where the port is taken."""
    with ExitStack() as closing:
        root = closing.enter_context(_open_root())
        room = Room(root, options.model, options.device, options.limits)
        closing.callback(room.close)
        demo = make_page(room)
        closing.callback(demo.close, verbose=False)
        try:
            _, address, _ = demo.launch(
                server_name=options.host,
                server_port=options.port or _find_port(options.host),
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                run_history=False,
                footer_links=[],
                enable_monitoring=False,
                max_file_size=f"{options.limits.megabytes}mb",
                theme=_make_theme(),
                css=STYLE.read_text(encoding="utf-8"),
            )
        except OSError as error:
            raise make_port_error(options.port) from error
        return Page(address.rstrip("/"), root, closing.pop_all())


@contextmanager
def _open_root() -> Iterator[Path]:
    """A temporary folder, inside of which gradio too keeps all files."""
    before = os.environ.get(TEMPORARY)
    with temporary_folder("pmsplat-app-") as root:
        os.environ[TEMPORARY] = str(root)
        try:
            yield root
        finally:
            del os.environ[TEMPORARY]
            if before is not None:
                os.environ[TEMPORARY] = before


def make_page(room: Room) -> gr.Blocks:
    """The components, and what happens when they are used."""
    examples = list_examples()
    with gr.Blocks(
        title="pmsplat", analytics_enabled=False, delete_cache=CHECKED, fill_width=True
    ) as demo:
        gr.HTML(introduce(room.model))
        with gr.Row(elem_classes="pm-columns"):
            with gr.Column(scale=2, min_width=300):
                files, views, detail = _make_inputs(room.limits)
                with gr.Row():
                    go = gr.Button("Make the scene", variant="primary", elem_id="go")
                    stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
                gr.HTML(tag("p", "Nothing at hand? Try one of these:", class_="pm-quiet"))
                with gr.Row():
                    tries = [gr.Button(example.label, size="sm") for example in examples]
                status = gr.HTML(elem_id="status")
            with gr.Column(scale=3, min_width=300):
                understood = gr.HTML(explain(room.limits), elem_id="understood")
        with gr.Column(visible=False, elem_id="results") as results:
            shown = _make_results()
        parts = _Parts(files, views, detail, go, stop, status, understood, results, *shown)
        _Desk(room, parts).connect(demo, dict(zip(tries, examples, strict=True)))
    return demo


def _make_inputs(limits: Limits) -> tuple[gr.File, gr.Slider, gr.Radio]:
    files = gr.File(
        label="Photos, a video or a .zip",
        file_count="multiple",
        file_types=["image", "video", ".zip", ".json", ".heic"],
        height=210,
        elem_id="files",
    )
    gr.HTML(tag("p", limits.describe(), class_="pm-quiet"))
    with gr.Accordion("Options", open=False):
        views = gr.Slider(
            2, 8, value=4, step=1, label="Photos that the network sees", elem_id="views"
        )
        detail = gr.Radio(
            list(DETAILS), value=next(iter(DETAILS)), label="Size of the pictures", elem_id="detail"
        )
    return files, views, detail


def _make_results() -> Sequence[Any]:
    """The last of `_Parts`, in their order."""
    gr.HTML(tag("h2", "The scene"))
    with gr.Row(elem_classes="pm-columns"):
        with gr.Column(scale=3, min_width=300):
            viewer = gr.HTML(elem_id="viewer")
        with gr.Column(scale=2, min_width=300):
            video = gr.Video(
                label="A path through the photos",
                elem_id="video",
                loop=True,
                interactive=False,
                buttons=["download"],
            )
            advice = gr.HTML()
    with gr.Row(elem_classes="pm-columns"):
        with gr.Column(min_width=300):
            gr.HTML(tag("h2", "Depth"))
            depth = gr.HTML(elem_id="depth")
        with gr.Column(min_width=300):
            gr.HTML(tag("h2", "Photos that were kept to compare"))
            compared = gr.HTML(elem_id="compared")
    gr.HTML(tag("h2", "To keep"))
    downloads = gr.File(label="Files", file_count="multiple", interactive=False, elem_id="kept")
    return viewer, video, depth, compared, advice, downloads


class _Desk:
    """What happens when a part of the page is used; gradio tells who asks by `request`."""

    def __init__(self, room: Room, parts: _Parts) -> None:
        self.room, self.parts = room, parts

    def connect(self, demo: gr.Blocks, examples: Mapping[gr.Button, Example]) -> None:
        """Connects the parts, the buttons of examples, and the visitor's leaving."""
        parts = self.parts
        given = [parts.files, parts.views, parts.detail]
        everything = [getattr(parts, field.name) for field in fields(parts)]
        work: dict[str, Any] = {
            "inputs": given,
            "outputs": [part for part in everything if part not in given],
            "show_progress": "hidden",
            "concurrency_limit": MOST_WAITING + 1,
            "concurrency_id": "work",
            "api_visibility": "private",
        }
        aside: dict[str, Any] = {
            "outputs": parts.status,
            "show_progress": "hidden",
            "queue": False,
            "api_visibility": "private",
        }
        begun = [parts.go.click(self.start, **work)]
        for button, example in examples.items():
            begun.append(button.click(self.start_example(example), **work))
        for event in begun:
            event.failure(_apologize, None, [parts.status, parts.go, parts.stop], queue=False)
        parts.files.change(self.look, parts.files, **aside)
        parts.stop.click(self.stop, **aside)
        demo.unload(self.leave)

    def start(
        self, files: list[str] | None, views: int, detail: str, request: gr.Request
    ) -> Iterator[Update]:
        """Works on uploaded files."""
        paths = tuple(map(Path, files or ()))
        wanted = Request(paths, views=int(views), longest=DETAILS[detail])
        yield from self._work(str(request.session_hash), wanted)

    def start_example(self, example: Example) -> Callable[..., Iterator[Update]]:
        """Works on an example."""

        def start(
            files: list[str] | None, views: int, detail: str, request: gr.Request
        ) -> Iterator[Update]:
            wanted = Request(example=example.open, views=int(views), longest=DETAILS[detail])
            yield from self._work(str(request.session_hash), wanted)

        return start

    def look(self, files: list[str] | None, request: gr.Request) -> Markup:
        """Says of uploaded files whether they can be used, before anything is computed."""
        paths = [Path(file) for file in files or ()]
        self.room.sessions.register(str(request.session_hash), paths)
        if not paths:
            return Markup("")
        try:
            return say(f"Ready: {describe_uploads(paths, self.room.limits)}.")
        except UserError as error:
            return describe_error(error)

    def stop(self, request: gr.Request) -> Markup:
        """Ends a visitor's work at its next step."""
        job = self.room.sessions.visit(str(request.session_hash)).job
        if job is not None:
            job.stop()
        return draw_step("Stopping after this step", 0, 0)

    def leave(self, request: gr.Request) -> None:
        """Forgets a visitor."""
        self.room.sessions.close(str(request.session_hash))

    def _work(self, key: str, wanted: Request) -> Iterator[Update]:
        """Works on one request, and shows how far it is."""
        parts = self.parts
        yield {
            parts.go: gr.update(interactive=False),
            parts.stop: gr.update(visible=True),
            parts.results: gr.update(visible=False),
            parts.understood: gr.update(value=explain(self.room.limits)),
            parts.status: gr.update(value=draw_step("Starting", 0, 0)),
        }
        last: Update = {}
        job: Job[Results] | None = None
        try:
            if wanted.example is None:
                describe_uploads(wanted.files, self.room.limits)
            job = self.room.start(key, wanted)
            state = State()
            for state in job.watch():
                yield _show_state(parts, state, self.room.count_before(job), job.is_stopping)
            last = _show_results(parts, job.result(), state)
        except Stopped:
            last = {parts.status: gr.update(value=say("Stopped. Nothing of it was kept."))}
        except UserError as error:
            last = {parts.status: gr.update(value=describe_error(error))}
        except OSError as error:
            if not is_full(error):
                raise
            full = UserError("this machine has no room left", "room for your files", "try later")
            last = {parts.status: gr.update(value=describe_error(full))}
        finally:
            if job is not None:
                job.stop()  # the visitor may have left
        yield last | {parts.go: gr.update(interactive=True), parts.stop: gr.update(visible=False)}


def _apologize() -> tuple[Any, Any, Any]:
    """The status and the buttons after a fault of ours, whose traceback the server has printed."""
    said = UserError(
        "something went wrong here, which is not the fault of your files",
        "a report of it",
        "tell who runs this page; the server has printed what happened",
    )
    buttons = gr.update(interactive=True), gr.update(visible=False)
    return gr.update(value=describe_error(said)), *buttons


def _show_state(parts: _Parts, state: State, before: int, stopping: bool) -> Update:
    step = state.step[:1].upper() + state.step[1:]
    if before:
        step = f"Waiting for {before} before you"
    if stopping:
        step = "Stopping after this step"
    status = join([draw_step(step, state.done, state.total), list_said(state.said)])
    shown: Update = {parts.status: gr.update(value=status)}
    if state.shown:
        shown[parts.understood] = gr.update(value=state.shown)
    return shown


def _show_results(parts: _Parts, results: Results, state: State) -> Update:
    nothing = tag("p", "All photos were shown to the network; bring one more.", class_="pm-quiet")
    return {
        parts.status: gr.update(
            value=join([say("Done. The scene is below."), list_said(state.said)])
        ),
        parts.results: gr.update(visible=True),
        parts.viewer: gr.update(value=results.viewer),
        parts.video: gr.update(value=str(results.video)),
        parts.depth: gr.update(value=results.depth),
        parts.compared: gr.update(value=results.compared or nothing),
        parts.advice: gr.update(value=results.advice),
        parts.downloads: gr.update(value=[str(path) for path in results.files]),
    }


def _look(room: Room, files: list[str] | None, request: gr.Request) -> Markup:
    """Says of uploaded files whether they can be used, before anything is computed."""
    paths = [Path(file) for file in files or ()]
    room.sessions.register(str(request.session_hash), paths)
    if not paths:
        return Markup("")
    try:
        return say(f"Ready: {describe_uploads(paths, room.limits)}.")
    except UserError as error:
        return describe_error(error)


def _stop(room: Room, request: gr.Request) -> Markup:
    job = room.sessions.visit(str(request.session_hash)).job
    if job is not None:
        job.stop()
    return draw_step("Stopping after this step", 0, 0)


def _leave(room: Room, request: gr.Request) -> None:
    room.sessions.close(str(request.session_hash))


def _make_theme() -> gr.themes.Base:
    """Colors and fonts that every system has: none is loaded."""
    theme = gr.themes.Base(primary_hue="indigo", font=SANS, font_mono=MONO)
    return theme.set(
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400"
    )


def _find_port(host: str) -> int:
    """A port that is free now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.bind((host, 0))
        return trial.getsockname()[1]
