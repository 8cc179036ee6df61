"""The explorer in a browser: what mouse, keys and links do, and that its figures are the library's."""

import dataclasses
import re

import cv2
import numpy as np
import pytest
from scipy import ndimage

from distcam_jax import report
from distcam_jax.localization import best_iou, heatmap_to_box
from tests.explorer_browser import open_browser, protocol

NASTY = "</script><img src=x onerror=\"document.title='broken'\"> & 'q'"
CLASSES = ["cat", NASTY, "@owl"]
COUNT, SIZE = 60, 32
THRESHOLDS = {"CAM": 0.2, "Dist-CAM": 0.35}


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@dataclasses.dataclass
class Shown:
    """A page, and what it was made of."""

    url: str
    maps: dict
    images: list

    def iou(self, method, index, name, threshold=None):
        image = self.images[index]
        heatmap = self.maps[method][index][image.classes.index(name)]
        threshold = THRESHOLDS[method] if threshold is None else threshold
        size = image.picture.shape[1::-1]
        box = heatmap_to_box(heatmap, size, threshold=threshold, protocol=protocol(SIZE))
        return best_iou(box, np.array(image.true_boxes)) if len(image.true_boxes) else None


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Sixty images, of which the fourth has no heat and the fifth no true box."""
    key = np.random.default_rng(6)
    images, maps = [], {name: [] for name in THRESHOLDS}
    for index in range(COUNT):
        true, predicted = CLASSES[index % 3], CLASSES[(index + (index % 4 == 0)) % 3]
        picture = cv2.resize(key.integers(0, 256, (4, 5, 3), np.uint8), (60, 48))
        images.append(
            report.ExplorerImage(
                picture=picture,
                classes=[true, *(name for name in CLASSES if name != true)],
                file_name=f"{NASTY} {index}.jpg",
                true_class=true,
                predicted_class=predicted,
                distance=float(key.gamma(2)),
                true_boxes=[[10, 8, 45, 40]] if index != 4 else [],
            )
        )
        for name in THRESHOLDS:
            smooth = [ndimage.gaussian_filter(key.random((7, 7)), 1.2) for _ in CLASSES]
            maps[name].append(np.float32([m - m.min() for m in smooth]))
    maps["CAM"][3] = -np.abs(maps["CAM"][3]) - 1
    methods = [report.ExplorerMethod(name, maps[name], threshold) for name, threshold in THRESHOLDS.items()]
    section = report.Section("Best cases", "Static.", [report.Case(images[0].picture, file_name="static.jpg")])
    whole = report.Report(
        NASTY, explorer=report.Explorer(images, methods, input_size=SIZE), sections=[section], settings={"a": 1}
    )
    path = report.save_report(whole, tmp_path_factory.mktemp("explorer") / "report.html")
    return Shown(path.as_uri(), maps, images)


@pytest.fixture
def page(browser, shown):
    """A fresh page; at its end nothing may have gone wrong or been asked for from elsewhere."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page, troubles = context.new_page(), []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: troubles.append(request.url) if not request.url.startswith(own) else None)
    page.on("dialog", lambda dialog: troubles.append(dialog.message))
    own = (shown.url, "data:")
    page.set_default_timeout(5000)
    page.goto(shown.url)
    yield page
    assert not troubles
    assert page.title() == NASTY
    context.close()


def text(page, name):
    return page.locator(f"#explorer-{name}").inner_text()


def iou_shown(page):
    return re.search(r"IoU\s+([\d.]+)", text(page, "figures")).group(1)


def pressed(page, name):
    return page.locator(f"#explorer-{name} [aria-pressed=true] b").inner_text()


def index_shown(page):
    return int(re.search(r"(\d+)\.jpg$", text(page, "name")).group(1))


def listed(page):
    """Indices of the images whose thumbnails exist, in the order of the list."""
    cells = page.locator("#explorer-list [role=option]").evaluate_all(
        "cells => cells.map(cell => [Number(cell.getAttribute('aria-posinset')), cell.getAttribute('aria-label')])"
    )
    return [int(re.search(r"(\d+)\.jpg", label).group(1)) for _, label in sorted(cells)]


def settle(page):
    page.locator("#explorer-summary[aria-busy=false]").wait_for()


def hash_parts(page):
    page.wait_for_timeout(300)  # the address follows with a delay
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def test_page_shows_the_first_image_as_the_library_sees_it(page, shown):
    assert (index_shown(page), pressed(page, "class"), pressed(page, "method")) == (0, "cat", "CAM")
    assert iou_shown(page) == f"{shown.iou('CAM', 0, 'cat'):.2f}"
    assert text(page, "name") == f"{NASTY} 0.jpg"
    assert "✗ wrong" in text(page, "classes")
    assert page.locator("#explorer-list [role=option]").count() < COUNT
    assert page.locator("#explorer-list [role=option]").first.get_attribute("aria-setsize") == str(COUNT)


def test_page_threshold_moves_iou_region_and_summary(page, shown):
    settle(page)
    for value in (0.5, 0.8):
        page.locator("#explorer-threshold").fill(str(value))
        assert iou_shown(page) == f"{shown.iou('CAM', 0, 'cat', value):.2f}"
        levels = cv2.resize(shown.maps["CAM"][0][0], (SIZE, SIZE))
        labels, _ = ndimage.label(levels >= value * levels.max(), np.ones((3, 3)))
        assert f"{100 * np.bincount(labels.ravel())[1:].max() / SIZE**2:.0f} % of" in text(page, "region-note")
        settle(page)
        ious = [shown.iou("CAM", i, shown.images[i].true_class, value) for i in range(COUNT) if i != 4]
        assert f"{np.mean(np.array(ious) >= 0.5):.1%}".replace("%", " %") in text(page, "summary")
        assert f"{np.mean(ious):.3f}" in text(page, "summary")
    page.locator("#explorer-reset").click()
    assert iou_shown(page) == f"{shown.iou('CAM', 0, 'cat'):.2f}"


def test_page_keys_step_through_images_classes_methods_and_thresholds(page, shown):
    page.locator("#explorer-list").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowDown", "m", "]", "]", "["):
        page.keyboard.press(key)
    assert (index_shown(page), pressed(page, "class"), pressed(page, "method")) == (1, "@owl", "Dist-CAM")
    assert iou_shown(page) == f"{shown.iou('Dist-CAM', 1, '@owl', 0.36):.2f}"
    assert hash_parts(page) == {"image": f"{NASTY} 1.jpg", "class": "@@owl", "method": "Dist-CAM", "t": "0.36"}
    page.keyboard.press("End")
    assert index_shown(page) == COUNT - 1
    assert pressed(page, "class") == "@owl"
    page.keyboard.press("?")
    assert page.locator("#explorer-keys").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#explorer-keys").is_visible()
    page.locator("#explorer-find").focus()
    page.keyboard.type("m?")
    assert pressed(page, "method") == "Dist-CAM"  # letters typed into the field are no keys


def test_page_keeps_the_part_of_the_class_from_image_to_image(page):
    page.locator("#explorer-class button", has_text="predicted").click()
    names = [(pressed(page, "class"), page.keyboard.press("ArrowRight"))[0] for _ in range(3)]
    assert names == [NASTY, NASTY, "@owl"]  # the predicted classes of images 0, 1 and 2


def test_page_orders_by_iou_and_filters(page, shown):
    page.locator("#explorer-method button", has_text="Dist-CAM").click()
    page.locator("#explorer-order").select_option("iou-low")
    settle(page)
    page.locator("#explorer-list").evaluate("list => list.scrollTop = 0")
    page.wait_for_timeout(100)
    ious = [shown.iou("Dist-CAM", i, shown.images[i].true_class) for i in range(COUNT)]
    order = sorted((i for i in range(COUNT) if i != 4), key=lambda i: ious[i])
    found = listed(page)
    assert found == order[: len(found)]
    page.locator("#explorer-order").select_option("distance-far")
    found = listed(page)
    assert found == sorted(range(COUNT), key=lambda i: -shown.images[i].distance)[: len(found)]
    page.locator("#explorer-decision").select_option("wrong")
    assert text(page, "count") == "15 of 60 images"
    page.locator("#explorer-true").select_option(label=f"{NASTY} (20)")
    assert text(page, "count") == "5 of 60 images"
    page.locator("#explorer-find").fill("28.JPG")
    assert listed(page) == [28]
    assert index_shown(page) == 28
    page.locator("#explorer-find").fill("nothing")
    assert listed(page) == []
    page.locator("#explorer-clear").click()
    assert text(page, "count") == "60 images"


def test_page_opens_at_a_finding_and_goes_back(page, shown):
    page.locator("[role=option]").nth(2).click()
    page.locator("[role=option]").nth(5).click()
    page.keyboard.press("ArrowRight")
    assert hash_parts(page)["image"].endswith("6.jpg")
    link = page.url
    page.go_back()
    assert index_shown(page) == 2
    page.go_back()
    assert (index_shown(page), page.url) == (0, shown.url)
    page.goto("about:blank")
    page.goto(link.replace("t=0.2", "t=0.55").replace("%40true", "cat") + "&order=name&decision=right")
    assert (index_shown(page), pressed(page, "class")) == (6, "cat")
    assert iou_shown(page) == f"{shown.iou('CAM', 6, 'cat', 0.55):.2f}"
    assert page.locator("#explorer-order").input_value() == "name"
    assert text(page, "count") == "45 of 60 images"
    page.locator("nav a", has_text="Settings").click()
    assert index_shown(page) == 6  # other addresses leave the explorer as it is


def test_page_shrugs_off_a_broken_address(page, shown):
    page.goto("about:blank")
    page.goto(shown.url + "#image=gone&class=gone&method=gone&t=x&order=gone&decision=gone&true=gone&find=%")
    assert (index_shown(page), pressed(page, "class"), pressed(page, "method")) == (0, "cat", "CAM")
    assert page.locator("#explorer-threshold").input_value() == "0.2"


def test_page_shows_a_map_without_heat_as_the_plain_picture(page):
    page.locator("[role=option]").nth(3).click()
    assert text(page, "heat-note") == "no positive value, IoU 0.00"
    assert text(page, "region-note") == "no region"
    assert "none" in text(page, "figures")
    page.locator("[role=option]").nth(4).click()
    assert "IoU" not in text(page, "figures") + text(page, "method")


def test_page_names_every_control_and_shows_the_focus(page):
    snapshot = page.locator("#explorer").aria_snapshot()
    controls = re.findall(r"- (?:button|combobox|searchbox|slider|listbox|img|option|search)\b.*", snapshot)
    assert len(controls) > 20
    assert not [line for line in controls if '"' not in line]
    page.locator("#explorer-find").focus()
    for _ in range(12):
        page.keyboard.press("Tab")
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style != "none", page.evaluate("document.activeElement.outerHTML")


def test_page_fits_a_narrow_screen_and_works_by_touch(browser, shown):
    context = browser.new_context(viewport={"width": 400, "height": 800}, has_touch=True)
    page = context.new_page()
    page.goto(shown.url)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.locator("#explorer-next").tap()
    page.locator("#explorer-method button").nth(1).tap()
    assert (index_shown(page), pressed(page, "method")) == (1, "Dist-CAM")
    context.close()


def test_page_without_scripts_keeps_the_static_sections(browser, shown):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(shown.url)
    assert not page.locator("#explorer").is_visible()
    assert not page.locator("#explorer-link").is_visible()
    assert page.locator("noscript").is_visible()
    assert page.locator("article img").is_visible()
    context.close()
