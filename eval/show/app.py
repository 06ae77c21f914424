"""The page of ``tlsc app``: one photograph as a network restores it as trained and converted, side by side.

Gradio draws it and is imported when it is asked for. Nothing leaves the machine: no telemetry, fonts of the system,
and a policy that has the browser refuse every request to another place.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import tlsc
from tlsc.errors import ArgumentValueError, first_line, needing
from tlsc.eval.images import open_picture, with_channels
from tlsc.eval.networks import Network

__all__ = ["Page", "blocks", "drawn_by", "serve"]

Shown = tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None, str]
"""The photograph as trained, converted, and what is said of them."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:"
)
"""What the browser may load: from this page's own address only."""
_FONTS = ["system-ui", "sans-serif"]
_CROPS = 8
"""From the photograph, for the prediction: fewer than ``advise`` takes, as someone waits."""


class Page:
    """What the page does, without what draws it.

    Args:
        network: with sites, its recommended window known or ``start`` given.
        start: the window to begin with, in pixels.
        largest: photographs of more pixels are refused.
        stride: of the conversion.

    Raises:
        ArgumentValueError: no window is known.
        NoSiteError: there is nothing to convert.
    """

    def __init__(
        self, network: Network, start: int | None = None, largest: int = 2_000_000, stride: int = 1
    ) -> None:
        window = start or network.base_size
        if window is None:
            raise ArgumentValueError(f"{network.name} needs --base-size or --crop: its training crop is not known")
        self.network, self.start, self.largest, self.stride = network, window, largest, stride
        with tlsc.converted(network.model, network.taken(window), stride=stride):
            pass
        self._alone = threading.Lock()  # the model is converted in place, and Gradio answers in threads
        self._trained: tuple[str, NDArray[np.uint8]] | None = None

    @property
    def windows(self) -> tuple[int, int]:
        """The smallest and the largest window that can be chosen."""
        crop = self.network.crop or self.start
        return max(8, min(crop, self.start) // 2 // 8 * 8), max(4 * crop, self.start)

    def restored(self, file: str | None, window: float) -> Iterator[Shown]:
        """Both pictures, and then a prediction of what converting changes; or one line that says what is wrong.

        Args:
            file: of the photograph.
            window: in pixels.
        """
        if not file:
            yield None, None, "Choose a photograph first."
            return
        path = Path(file)
        try:
            with self._alone:
                image = self._image(path)
                size = self.network.taken(int(window))
                before, after = self._before(file, image), self._after(image, size)
                said = self._changed(before, after, image, int(window))
                yield before, after, f"{said} Predicting whether that is a gain …"
                yield before, after, f"{said} {self._predicted(image, size)}"
        except Exception as error:  # a page has no other place for it
            yield None, None, first_line(error, typed=False).replace(str(path), path.name)

    def _image(self, path: Path) -> torch.Tensor:
        with open_picture(path) as picture:
            pixels = picture.height * picture.width
            if pixels > self.largest:
                raise ArgumentValueError(
                    f"{path.name} has {pixels / 1e6:.1f} million pixels, and this page takes up to "
                    f"{self.largest / 1e6:g} million (--largest); 'tlsc restore' takes any size"
                )
            found = with_channels(picture.read().pixels, self.network.channels)
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(found, 2, 0)))[None]

    @torch.no_grad()
    def _run(self, image: torch.Tensor) -> NDArray[np.uint8]:
        values = self.network(image)[0].clamp(0, 1).mul(255).round().byte().numpy()
        if values.shape[0] == 1:
            values = np.repeat(values, 3, 0)
        return np.ascontiguousarray(np.moveaxis(values, 0, 2))

    def _before(self, file: str, image: torch.Tensor) -> NDArray[np.uint8]:
        """As trained: once for a photograph, whatever windows are tried on it."""
        if self._trained is None or self._trained[0] != file:
            self._trained = file, self._run(image)
        return self._trained[1]

    def _after(self, image: torch.Tensor, size: int | tuple[int, int]) -> NDArray[np.uint8]:
        with tlsc.converted(self.network.model, size, stride=self.stride, check=False):
            return self._run(image)

    def _changed(
        self, before: NDArray[np.uint8], after: NDArray[np.uint8], image: torch.Tensor, window: int
    ) -> str:
        if max(image.shape[2:]) <= window:
            return f"The photograph is no larger than the window of {window} pixels, so that nothing changes."
        moved = np.abs(before.astype(np.int16) - after)
        return f"Converted, pixels change by {moved.mean():.1f} of 255 on average, at most {moved.max()}."

    def _predicted(self, image: torch.Tensor, size: int | tuple[int, int]) -> str:
        crop = self.network.crop
        if crop is None:
            return "Whether that is a gain is not predicted: the training crop is not known (--crop)."
        try:
            found = tlsc.predict(
                self.network.model,
                image,
                size,
                crop=self.network.taken(crop),
                crops_per_image=_CROPS,
                call=self.network,
            )
        except tlsc.TLSCError as error:
            return f"No prediction: {first_line(error, typed=False)}."
        return found.sentence


def drawn_by() -> Any:
    """Gradio.

    Raises:
        MissingPackageError: it is not installed.
    """
    with needing("app", "the page"):
        import gradio
    return gradio


def blocks(page: Page) -> Any:
    """The page as Gradio's blocks.

    Raises:
        MissingPackageError: Gradio is not installed.
    """
    gradio = drawn_by()
    low, high = page.windows
    about = f"`{page.network.name}`: {page.network.description or page.network.kind}"
    with gradio.Blocks(title="tlsc", analytics_enabled=False) as made:
        gradio.Markdown(f"# Local statistics at test time\n{about}")
        with gradio.Row():
            file = gradio.File(label="Photograph", type="filepath", elem_id="photograph")
            with gradio.Column():
                window = gradio.Slider(low, high, page.start, step=8, label="Window, pixels", elem_id="window")
                button = gradio.Button("Restore", variant="primary", elem_id="restore")
        said = gradio.Textbox(label="What came out", interactive=False, lines=2, elem_id="said")
        with gradio.Row():
            pictures = [
                gradio.Image(
                    label=label, format="png", interactive=False, elem_id=name, buttons=["download", "fullscreen"]
                )
                for name, label in (("trained", "As trained"), ("converted", "Converted"))
            ]
        whole = {"fn": page.restored, "inputs": [file, window], "outputs": [*pictures, said]}
        for event in (button.click, file.upload, window.release):
            event(**whole, show_progress="minimal", concurrency_limit=1, concurrency_id="network", api_name=False)
    return made


def serve(page: Page, port: int | None, wait: bool = True) -> str:
    """Start the page on this machine's own address, and wait until it is interrupted.

    Args:
        page: what is shown.
        port: None: the first that is free from 7860 on.
        wait: False: return at once; the page goes on in a thread.

    Returns:
        Its address.

    Raises:
        MissingPackageError: Gradio is not installed.
        OSError: the port is taken.
    """
    made = blocks(page)
    from starlette.middleware import Middleware

    theme = drawn_by().themes.Default(font=_FONTS, font_mono=["monospace"])
    _, address, _ = made.queue(max_size=8).launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        ssr_mode=False,
        quiet=True,
        footer_links=[],
        theme=theme,
        prevent_thread_lock=True,
        app_kwargs={"middleware": [Middleware(_Confined)]},
    )
    if wait:
        print(f"The page is at {address} (this machine only); stop it with Ctrl+C", flush=True)
        made.block_thread()
    return str(address)


class _Confined:
    """Gives every answer the policy; an application in Starlette's manner around another."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def confined(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, confined if scope["type"] == "http" else send)
