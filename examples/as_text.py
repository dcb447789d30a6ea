"""Write a classification as text: prompts with completions for a language model, from a file with labels.

    python examples/as_text.py sst2/train.parquet OUT/train.jsonl \
        --prompt "Review: {sentence}" --prompt "Sentiment:" --label label --answer " negative" --answer " positive"

A prompt is made of its lines; what stands in braces is a column. The i-th answer is that of label i.
"""

import argparse
import json
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("file", type=Path, help="Parquet or CSV")
    given.add_argument("out", type=Path, help="a .jsonl file to write")
    given.add_argument("--prompt", action="append", required=True, help="a line of the prompt; repeat")
    given.add_argument("--label", required=True, help="column of class numbers")
    given.add_argument("--answer", action="append", required=True, help="completion of class 0, 1, ...; repeat")
    arguments = given.parse_args()
    read = pyarrow.parquet.read_table if arguments.file.suffix == ".parquet" else pyarrow.csv.read_csv
    lines = []
    for row in read(str(arguments.file)).to_pylist():
        prompt, completion = "\n".join(arguments.prompt).format(**row), arguments.answer[row[arguments.label]]
        lines.append(json.dumps({"prompt": prompt, "completion": completion}))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} rows written to {arguments.out}")


if __name__ == "__main__":
    main()
