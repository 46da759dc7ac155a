"""The verdict on one part, from files, as a line of JSON for other programs.

das3d train demo/data --preset demo --out demo/run
python examples/predict_one_part.py demo/run part.png part.tiff
"""

import json
import sys
from pathlib import Path

from das3d import Das3dError, load
from das3d.files import read_depth, read_rgb


def main(model: Path, rgb: Path, depth: Path) -> int:
    try:
        detector = load(model)
        colours = read_rgb(rgb)
        metres, _, camera = read_depth(depth, detector.depth_format)  # as in training
        prediction = detector.predict(colours, metres, camera=camera)
    except Das3dError as error:
        print(error, file=sys.stderr)
        return 1
    row, column = divmod(int(prediction.map.argmax()), prediction.map.shape[1])
    answer = {
        "defective": prediction.defective,
        "score": round(prediction.score, 4),
        "false_alarm_probability": prediction.false_alarm_probability,
        "worst_pixel": [row, column],
    }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))
