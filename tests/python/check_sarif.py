"""Holds a file against a JSON Schema of draft 4, as that of SARIF is.

    check_sarif.py SCHEMA FILE

Prints what does not fit and exits with 1, or prints the number of results. Besides the schema it
checks what the schema cannot: that each result's index leads to the rule that it names.
"""

import json
import sys
from pathlib import Path

from jsonschema import Draft4Validator


def main(schema, file):
    schema, log = (json.loads(Path(path).read_text()) for path in (schema, file))
    Draft4Validator.check_schema(schema)
    errors = [f"{'/'.join(map(str, error.path))}: {error.message}"
              for error in Draft4Validator(schema).iter_errors(log)]
    run = log["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    errors += [f"{result['ruleId']} is not rule {result['ruleIndex']}" for result in run["results"]
               if rules[result["ruleIndex"]]["id"] != result["ruleId"]]
    if errors:
        sys.exit("\n".join(errors))
    print(len(run["results"]))


main(*sys.argv[1:])
