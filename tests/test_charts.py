"""Guards bar charts: well-formed SVG, escaped text, lengths to scale."""

import xml.etree.ElementTree as ET

from m3ae_tpu.charts import Bar, BarGroup, bar_chart, svg_file

GROUPS = [
    BarGroup(
        title="<forward>",
        bars=[
            Bar(name="ours", value=1.0, label="1.00 us", is_accented=True),
            Bar(name="xla", value=4.0, label="≥ 4.00 us"),
            Bar(name="flash", value=None, label="no figure"),
        ],
    ),
    BarGroup(title="both", bars=[Bar(name="ours", value=100.0, label="100.00 us")]),
]


def test_bars_are_to_scale_within_their_group():
    root = ET.fromstring(bar_chart("a & b", GROUPS))
    widths = [float(bar.get("width", "nan")) for bar in root.findall("rect")]
    assert widths[0] * 4 == widths[1] == widths[3] > widths[2] == 0
    texts = [text.text for text in root.findall("text")]
    assert texts[:2] == ["a & b", "<forward>"]
    assert {"ours", "1.00 us", "no figure"} <= set(texts)


def test_an_svg_file_carries_its_style():
    root = ET.fromstring(svg_file(bar_chart("title", GROUPS)))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    style = root.find("{http://www.w3.org/2000/svg}style")
    assert style is not None
    assert ".length.accented" in (style.text or "")
