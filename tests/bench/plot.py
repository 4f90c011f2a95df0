"""The plot of how cost grows, as SVG: three panels, logarithmic both ways."""

import math

WIDTH, HEIGHT, LEFT, TOP, PANEL, TALL = 930, 300, 55, 40, 245, 200
COLOURS = {"Larder": "#1b7f5c", "nginx": "#8a8a8a", "start": "#1b7f5c", "tag HEAD": "#c4651a"}


def scale(found):
    panels = [
        ("blobs in the store", "ms to the first answer; µs a tag HEAD", {
            "start": [(at["blobs"], at["start_ms"]) for at in found["blobs"]],
            "tag HEAD": [(at["blobs"], at["head_us"]) for at in found["blobs"]],
        }),
        ("clients, 1 MiB each", "CPU s/GB", {name: [(at["clients"], at[name]["cpu"]) for at in found["clients"]] for name in ("Larder", "nginx")}),
        ("bytes of a blob", "CPU µs each", {name: [(at["size"], at[name]["each_us"]) for at in found["size"]] for name in ("Larder", "nginx")}),
    ]
    drawn = "".join(panel(LEFT + at * (PANEL + 60), *words) for at, words in enumerate(panels))
    style = "text{font:11px sans-serif;fill:#444}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{drawn}</svg>\n'
    )


def panel(left, across, up, lines):
    points = [(x, max(y, 1e-6)) for line in lines.values() for x, y in line]
    x_low, x_high = bounds([x for x, _ in points])
    y_low, y_high = bounds([y for _, y in points])
    place = lambda x, y: (
        left + PANEL * (math.log10(x) - x_low) / (x_high - x_low),
        TOP + TALL * (1 - (math.log10(max(y, 1e-6)) - y_low) / (y_high - y_low)),
    )
    out = f'<text x="{left}" y="{TOP - 22}">{up}</text><text x="{left + PANEL}" y="{TOP + TALL + 32}" text-anchor="end">{across}</text>'
    for power in range(x_low, x_high + 1):
        x, _ = place(10**power, 10**y_low)
        out += f'<path d="M{x:.1f} {TOP}V{TOP + TALL}" stroke="#eee"/><text x="{x:.1f}" y="{TOP + TALL + 15}" text-anchor="middle">{short(power)}</text>'
    for power in range(y_low, y_high + 1):
        _, y = place(10**x_low, 10**power)
        out += f'<path d="M{left} {y:.1f}h{PANEL}" stroke="#eee"/><text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{short(power)}</text>'
    for number, (name, line) in enumerate(lines.items()):
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in line))
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{COLOURS[name]}"/>' for x, y in (place(*point) for point in line))
        label = f'<text x="{left + 70 * number}" y="{TOP - 7}" style="fill:{COLOURS[name]}">{name}</text>'
        out += f'<path d="M{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.5"/>{dots}{label}'
    return out


def bounds(values):
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def short(power):
    names = {-3: "0.001", -2: "0.01", -1: "0.1", 0: "1", 1: "10", 2: "100", 3: "1 k", 4: "10 k", 5: "100 k", 6: "1 M", 7: "10 M", 8: "100 M", 9: "1 G", 10: "10 G"}
    return names.get(power, f"1e{power}")
