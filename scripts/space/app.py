"""pmsplat as a Space of the Hugging Face hub: the page of `pmsplat app`, for everybody.

Put the files of this folder into a Space whose SDK is gradio. Limits are those of `pmsplat app`,
with fewer photos: a Space without a GPU has two cores.
"""

import threading

from pmsplat.tasks.app import Limits, Options, app

if __name__ == "__main__":
    page = app(Options(host="0.0.0.0", port=7860, limits=Limits(photos=24, seconds=30)), tell=print)
    print(f"Serving at {page.address}", flush=True)
    threading.Event().wait()
