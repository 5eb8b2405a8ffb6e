"""Reads a run's event files with TensorBoard and compares every value with metrics.jsonl and results.json.

    pip install tensorboard==2.20.0
    python tools/check_tensorboard.py runs/NAME [FOLDER]

FOLDER holds `student` and `teacher`; it is runs/NAME/tensorboard unless it is given.
"""

import json
import operator
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

NUMBERED = 24  # Matrices of more tasks have no numbers in their cells.


def float32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def mean(values):
    return sum(values) / len(values) if values else 0.0


def summaries(matrix, images):
    """Returns the summaries of a whole matrix by docs/guide/runs-and-metrics.md, without forward transfer. `images` are
    the numbers of test images of the tasks."""
    last, tasks = matrix[-1], len(matrix)
    over_images = [sum(map(operator.mul, row, images)) / sum(images[: len(row)]) for row in matrix]
    before = range(tasks - 1)
    return {
        "average_accuracy": mean(last),
        "forgetting": sum(matrix[j][j] - last[j] for j in range(tasks)) / tasks,
        "average_incremental_accuracy": mean([mean(row) for row in matrix]),
        "accuracy_over_images": over_images[-1],
        "incremental_accuracy_over_images": mean(over_images),
        "forgetting_from_best": mean([max(row[j] for row in matrix[j:]) - last[j] for j in before]),
        "backward_transfer": mean([last[j] - matrix[j][j] for j in before]),
    }


def expected(run, role):
    """Returns the expected values by tag and step, and the number of tasks."""
    points = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        epoch = json.loads(line)
        if epoch["role"] != role:
            continue
        step = (epoch["task"] - 1) * epoch["epochs"] + epoch["epoch"]
        for name, value in epoch["losses"].items():
            points["loss/" + ("total" if name == "loss" else name), step] = value
        points["training/accuracy", step] = epoch["accuracy"]
        points["training/learning_rate", step] = epoch["lr"]
        points["training/images_per_second", step] = epoch["images_per_second"]
    results = json.loads((run / "results.json").read_text())
    matrix, images = results[role]["accuracy_matrix"], results["test_images"]
    for i, row in enumerate(matrix):
        for j, accuracy in enumerate(row):
            points[f"accuracy/task_{j + 1}", i + 1] = accuracy
        for name, value in summaries(matrix[: i + 1], images).items():
            points[f"summary/{name}", i + 1] = value
    # The summaries after the last task must equal those in results.json.
    for name in summaries(matrix, images):
        assert abs(points[f"summary/{name}", len(matrix)] - results[role][name]) < 1e-9, name
    return points, len(matrix)


def size(tasks, role):
    """Returns width and height in pixels of a matrix's image: cells, labels around them, and room for the title."""
    if tasks <= NUMBERED:
        cell, (across, down) = (46 if tasks <= 12 else 32), (34 + 6.7 * len(str(tasks)), 72)
        title, high = f"{role}, accuracy in %", tasks * min(cell, 38)
        minimum = down + high / 2 + 6.7 * len("after task") / 2 + 6
    else:
        cell, (across, down) = min(max(600 / tasks, 1), 6), (64, 72)
        title, high, minimum = f"{role}, accuracy of {tasks} tasks", tasks * cell, 0
    return round(max(across + tasks * cell + 16, 6.7 * 1.25 * len(title) + 24)), round(max(down + high + 12, minimum))


def check(run, folder, role):
    events = EventAccumulator(str(folder / role), size_guidance={SCALARS: 0, IMAGES: 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            assert (tag, event.step) not in found, f"{tag} twice at step {event.step}"
            found[tag, event.step] = event.value
    points, tasks = expected(run, role)
    assert set(found) == set(points), sorted(set(found) ^ set(points))
    for key, value in points.items():
        # The order of sums may differ, and float32 has seven digits.
        assert abs(found[key] - float32(value)) <= 1e-6 * max(1.0, abs(value)), (key, found[key], value)
    images = events.Images("accuracy_matrix")
    assert [image.step for image in images] == list(range(1, tasks + 1)), images
    for image in images:
        assert image.encoded_image_string.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", image.encoded_image_string[16:24])
        assert (width, height) == (image.width, image.height) == size(image.step, role), image.step
    print(f"{folder / role}: {len(found)} values and {len(images)} images agree with the run")


def main():
    run = Path(sys.argv[1])
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else run / "tensorboard"
    results = json.loads((run / "results.json").read_text())
    roles = [role for role in ("student", "teacher") if results[role] is not None]
    assert roles, f"{run} has results of neither network"
    for role in roles:
        check(run, folder, role)


if __name__ == "__main__":
    main()
