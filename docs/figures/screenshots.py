"""Take report-desktop.png, report-phone.png and map.png, beside this file, of the report of a session.

    python -m examples.cifar10_folder data data/cifar10
    for class in data/cifar10/train/*; do
        mkdir -p data/cifar10-2k/$(basename $class)
        ls $class | LC_ALL=C sort | head -n 200 | while read file; do cp $class/$file data/cifar10-2k/$(basename $class); done
    done
    python main.py --cfgs configs/imc_swav/base.yaml configs/imc_swav/pretrained.yaml --data-root data/cifar10-2k \
        --num-clusters 10 --imports examples.efficientnet_lite0 --network efficientnet_lite0 --net-weights none \
        --tfm-size 112 --seed 0 --session cifar10-photos
    python docs/figures/screenshots.py sessions/cifar10-photos

Chromium has to be installed, and `pip install playwright` (`test` in pyproject.toml).
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, FloatRect, Locator, Page, sync_playwright

HERE = Path(__file__).parent
LARGEST = 290_000  # bytes of a file; one that would be larger gets a palette
FONT = "body { font-family: 'Liberation Sans', Arial, Helvetica, sans-serif; }"  # the same on every Linux
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
MARGIN = 8  # px around a part of the page
# The place on the map of a confident image near the lower left corner, beside which there is room for its label.
PLACE = """() => {
    const offset = (n) => Math.hypot(at(n)[0] - size[0] * 0.26, at(n)[1] - size[1] * 0.88);
    const confident = data.names.map((_, n) => n).filter((n) => data.confidence[n] > 0.9);
    const [x, y] = at(confident.reduce((best, n) => (offset(n) < offset(best) ? n : best)));
    return { x, y };
}"""


def save(content: bytes, name: str) -> None:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image.save(HERE / name, optimize=True)
    if (HERE / name).stat().st_size > LARGEST:
        image.quantize(256, Image.Quantize.MEDIANCUT, kmeans=4).save(HERE / name, optimize=True)


def opened(browser: Browser, report: Path, width: int, height: int, scale: int) -> Page:
    page = browser.new_page(
        viewport={"width": width, "height": height},
        device_scale_factor=scale,
        color_scheme="light",
        reduced_motion="reduce",
    )
    page.goto(report.resolve().as_uri())
    page.add_style_tag(content=FONT)
    page.wait_for_timeout(500)
    return page


def around(*parts: Locator) -> FloatRect:
    """The part of the window that holds all `parts`."""
    boxes = [box for part in parts if (box := part.bounding_box())]
    left = min(box["x"] for box in boxes)
    top = min(box["y"] for box in boxes)
    right = max(box["x"] + box["width"] for box in boxes)
    bottom = max(box["y"] + box["height"] for box in boxes)
    return {
        "x": left - MARGIN,
        "y": top - MARGIN,
        "width": right - left + 2 * MARGIN,
        "height": bottom - top + 2 * MARGIN,
    }


def main(session: Path) -> None:
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        sys.exit(f"error: none of {', '.join(PROGRAMS)} is installed; install Chromium")
    report = session / "report.html"
    if not report.is_file():
        sys.exit(f"error: {session} has no report.html; name the folder of a finished session")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        desktop = opened(browser, report, 1280, 900, 1)
        save(desktop.screenshot(), "report-desktop.png")
        desktop.locator("#map").scroll_into_view_if_needed()
        desktop.locator("#plane").hover(position=desktop.evaluate(PLACE))
        desktop.wait_for_timeout(500)
        save(
            desktop.screenshot(clip=around(desktop.locator("#map .around"), desktop.locator("#map .chips"))), "map.png"
        )
        phone = opened(browser, report, 390, 844, 2)
        phone.evaluate("document.getElementById('clusters').scrollIntoView()")
        phone.wait_for_timeout(500)
        save(phone.screenshot(), "report-phone.png")
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: name the folder of one session, as in python docs/figures/screenshots.py sessions/NAME")
    main(Path(sys.argv[1]))
