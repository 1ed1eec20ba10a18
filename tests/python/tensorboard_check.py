"""What the real TensorBoard reads from a folder of event files, as JSON.

    tensorboard_check.py FOLDER

Prints {tag: [[step, value, wall time in seconds], ...]}. Exits with 1 if a file has a damaged
record: TensorBoard itself would only stop reading there.
"""

import json
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.compat.tensorflow_stub.errors import OutOfRangeError


def check_records(path):
    """Reads to the end; a wrong checksum or a cut record raises an error."""
    reader = PyRecordReader_New(str(path))
    try:
        while True:
            reader.GetNext()
    except OutOfRangeError:
        return
    except Exception as error:  # DataLossError, and what a cut header makes of itself.
        sys.exit(f"{path.name}: {error}")


def main(folder):
    files = sorted(Path(folder).glob("*tfevents*"))
    if not files:
        sys.exit(f"{folder}: no file named *tfevents*, TensorBoard would show nothing")
    for path in files:
        check_records(path)
    events = EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [[e.step, e.value, e.wall_time] for e in events.Scalars(tag)]
               for tag in tags["scalars"]}
    print(json.dumps(scalars))


if __name__ == "__main__":
    main(sys.argv[1])
