"""What NVIDIA's own nvidia-smi prints about this machine, as JSON under the names of qvl's facts.

It reads `-q -x` (XML), `--query-gpu` and `--query-compute-apps` (CSV), `nvlink` and `topo`. What the client's
version cannot show is left out. Every answer is the value, or {"error": nvmlReturn_t}: 3 where it prints N/A,
999 for any other text that is no value.

    smi_read.py PATH_OF_NVIDIA_SMI NUMBER_OF_GPUS
"""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

MIB = 1 << 20
NOT_SUPPORTED, UNKNOWN, LOST = 3, 999, 15
CSV = {
    "index": "index",
    "compute_cap": "compute_cap",  # not in 470
    "reasons": "clocks_throttle_reasons.active",
    "uncorrected": "ecc.errors.uncorrected.volatile.total",
    "corrected": "ecc.errors.corrected.volatile.total",
}


def run(*arguments):
    done = subprocess.run([sys.argv[1], *arguments], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def value(text, convert):
    """A printed value, or the error that its text stands for."""
    text = text.strip().strip("[]")
    if text in ("N/A", "Not Supported"):
        return {"error": NOT_SUPPORTED}
    try:
        return convert(text)
    except (ValueError, KeyError):
        return {"error": UNKNOWN}


def first_number(text):
    return int(re.match(r"\d+", text).group()) if re.match(r"\d+", text) else int("none")


def flag(text):
    return {"Enabled": True, "Yes": True, "Active": True, "Disabled": False, "No": False,
            "Not Active": False}[text]


def version(text):
    major, minor = text.split(".")
    return int(major) * 1000 + int(minor) * 10


class Gpu:
    """One `<gpu>` of the XML."""

    def __init__(self, node):
        self.node = node

    def get(self, path, convert=str):
        found = self.node.find(path)
        return None if found is None else value(found.text or "", convert)

    def both(self, path, names, convert):
        """Several values that are one fact: an error of one of them is an error of all."""
        values = {name: self.get(f"{path}/{tag}", convert) for name, tag in names.items()}
        if any(one is None for one in values.values()):
            return None
        errors = [one for one in values.values() if isinstance(one, dict)]
        return errors[0] if errors else values


def memory(gpu):
    def size(tag):
        return gpu.get(f"fb_memory_usage/{tag}", lambda text: first_number(text) * MIB)

    reserved = size("reserved")
    if isinstance(reserved, dict):
        reserved = None
    answers = {"total": size("total"), "reserved": reserved, "used": size("used")}
    errors = [answers[name] for name in ("total", "used") if isinstance(answers[name], dict)]
    return errors[0] if errors else answers


def retired(gpu):
    single, double = "multiple_single_bit_retirement", "double_bit_retirement"
    counts = gpu.both("retired_pages", {"single_bit": f"{single}/retired_count",
                                        "double_bit": f"{double}/retired_count"}, int)
    pending = gpu.get("retired_pages/pending_retirement", flag)
    if isinstance(pending, dict) or "error" in counts:
        return pending if isinstance(pending, dict) else counts
    return {**counts, "pending": pending}


def remapped(gpu):
    if gpu.node.find("remapped_rows/remapped_row_corr") is None:
        return {"error": NOT_SUPPORTED}  # it prints one N/A in place of all
    counts = gpu.both("remapped_rows", {"correctable": "remapped_row_corr",
                                        "uncorrectable": "remapped_row_unc"}, int)
    flags = gpu.both("remapped_rows", {"pending": "remapped_row_pending",
                                       "failed": "remapped_row_failure"}, flag)
    return counts if "error" in counts else flags if "error" in flags else {**counts, **flags}


def power(gpu, tag, tag_of_470):
    def milliwatts(text):
        return round(float(text.removesuffix(" W")) * 1000)

    now = gpu.get(f"gpu_power_readings/{tag}", milliwatts)
    return now if now is not None else gpu.get(f"power_readings/{tag_of_470}", milliwatts)


def compute_mode(text):
    return {"Default": "default", "Exclusive_Thread": "exclusive-thread", "Prohibited": "prohibited",
            "Exclusive_Process": "exclusive-process"}[text]


def virtualization(text):
    return {"None": 0, "Pass-Through": 1, "VGPU": 2, "Host VGPU": 3}[text]


def fabric_state(text):
    return {"Not Started": 1, "In Progress": 2, "Completed": 3}[text]


def facts(gpu, row, processes, links, peers):
    link = "pci/pci_gpu_link_info"
    uuid = gpu.get("uuid")
    answers = {
        "index": value(row["index"], int),
        "name": gpu.get("product_name"),
        "uuid": uuid,
        "serial": gpu.get("serial"),
        "vbios": gpu.get("vbios_version"),
        "gsp_firmware": gpu.get("gsp_firmware_version"),
        "pci_address": gpu.get("pci/pci_bus_id", lambda text: text.lower()[4:]),
        "minor_number": gpu.get("minor_number", int),
        "compute_capability": value(row["compute_cap"], lambda text: int(text.replace(".", "")))
        if "compute_cap" in row else None,
        "memory": memory(gpu),
        "processes": processes.get(uuid, []) if isinstance(uuid, str) else {"error": UNKNOWN},
        "utilization_percent": gpu.get("utilization/gpu_util", first_number),
        "compute_mode": gpu.get("compute_mode", compute_mode),
        "mig": gpu.both("mig_mode", {"current": "current_mig", "pending": "pending_mig"}, flag),
        "persistence": gpu.get("persistence_mode", flag),
        "ecc": gpu.both("ecc_mode", {"current": "current_ecc", "pending": "pending_ecc"}, flag),
        "ecc_uncorrected_volatile": value(row["uncorrected"], int),
        "ecc_corrected_volatile": value(row["corrected"], int),
        "remapped_rows": remapped(gpu),
        "retired_pages": retired(gpu),
        "temperature_c": gpu.get("temperature/gpu_temp", first_number),
        "slowdown_temperature_c": gpu.get("temperature/gpu_temp_slow_threshold", first_number),
        "power_limit_mw": power(gpu, "current_power_limit", "enforced_power_limit"),
        "power_limit_default_mw": power(gpu, "default_power_limit", "default_power_limit"),
        "pcie_width": gpu.both(f"{link}/link_widths", {"current": "current_link_width",
                                                       "max": "max_link_width"}, first_number),
        "pcie_generation": gpu.both(f"{link}/pcie_gen", {"current": "current_link_gen",
                                                         "max": "max_link_gen"}, int),
        "pcie_replays": gpu.get("pci/replay_counter", int),
        "sram_threshold_exceeded": gpu.get("ecc_errors/aggregate/sram_threshold_exceeded", flag),
        "virtualization": gpu.get("gpu_virtualization_mode/virtualization_mode", virtualization),
        "display_active": gpu.get("display_active", flag),
        "bar1_bytes": gpu.get("bar1_memory_usage/total", lambda text: first_number(text) * MIB),
        "fabric_state": gpu.get("fabric/state", fabric_state),
        "nvlinks": links,
        "p2p_read": peers,
    }
    if isinstance(answers["ecc"], dict) and "error" in answers["ecc"]:
        del answers["sram_threshold_exceeded"]  # without the mode it prints no counters
    reasons = value(row["reasons"], lambda text: int(text, 16))
    answers["clock_event_reasons"] = reasons if isinstance(reasons, dict) else [reasons, reasons]
    return {name: answer for name, answer in answers.items() if answer is not None}


def rows(selection):
    """CSV of `--query-gpu`, by name; columns that this version does not know are left out."""
    names = {name: field for name, field in CSV.items() if 535 <= SERIES or name != "compute_cap"}
    code, text = run(*selection, f"--query-gpu={','.join(names.values())}", "--format=csv,noheader,nounits")
    cells = (line.split(", ") for line in text.strip().splitlines())
    return [dict(zip(names, line)) for line in cells]


def processes():
    code, text = run("--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader,nounits")
    found = {}
    for line in text.strip().splitlines() if code == 0 else []:
        uuid, pid, mib = line.split(", ")
        found.setdefault(uuid, []).append({"pid": int(pid), "used_bytes": int(mib) * MIB})
    return found


def links(index):
    """State of each link of a GPU; a link that is up has a speed."""
    if SERIES < 535:
        return None  # 470 asks for other fields, and repeats the question for ever
    code, text = run("nvlink", "-s", "-i", str(index))
    found = re.findall(r"Link (\d+): (.*)", text)
    return [{"link": int(link), "active": "inactive" not in state} for link, state in found]


def peers(count):
    """Word of each pair in `topo -p2p r`, by row and column."""
    code, text = run("topo", "-p2p", "r")
    words = {"OK": 0, "CNS": 1, "GNS": 2, "TNS": 3, "DR": 4, "NS": 5, "U": 6}
    lines = [line.split() for line in text.splitlines() if re.match(r"\s*GPU\d+\s", line)]
    matrix = [line[1:] for line in lines if len(line) == count + 1 and line[1] != "GPU1"]
    return [[words.get(word) for word in line] for line in matrix]


def one(index, matrix, by_uuid):
    selection = ["-i", str(index)]
    code, text = run(*selection, "-q", "-x")
    if code != 0 or not text.startswith("<?xml"):
        return {"handle": LOST if "GPU is lost" in text else UNKNOWN}
    node = ElementTree.fromstring(text).find("gpu")
    pairs = [word for word in matrix[index] if word is not None] if matrix else None
    return facts(Gpu(node), rows(selection)[0], by_uuid, links(index), pairs)


def everything(count):
    code, text = run("-L")
    if code != 0 and "device handle" not in text:
        return {"init": code if code < 128 else UNKNOWN, "message": text.strip()}
    matrix, by_uuid = peers(count) if 1 < count else None, processes()
    answers = {"init": 0, "gpus": [one(index, matrix, by_uuid) for index in range(count)]}
    code, text = run("-q", "-x")
    answers["exit_code"], answers["message"] = code, text.strip() if code != 0 else ""
    if code == 0:
        log = ElementTree.fromstring(text)
        answers["attached_gpus"] = int(log.findtext("attached_gpus"))
        answers["driver_version"] = log.findtext("driver_version")
        answers["cuda_version"] = version(log.findtext("cuda_version"))
    return answers


if __name__ == "__main__":
    SERIES = int(re.search(r"v(\d+)\.", run("--help")[1]).group(1))
    json.dump(everything(int(sys.argv[2])), sys.stdout)
