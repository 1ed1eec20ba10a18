"""Reads what NVML says with NVIDIA's own bindings (nvidia-ml-py), as JSON.

It asks for what qvl asks for, in its own words and with the structs of its own package, so that
a mistake in the Rust bindings or in qvl's use of them shows as a difference.

Every answer is the value, or {"error": nvmlReturn_t}.

    nvml_read.py             everything
    nvml_read.py symbols     names of all functions of the package that the library lacks
    nvml_read.py xid         first XID event of any GPU, waiting 5 seconds at most
"""

import ctypes
import json
import re
import sys

import pynvml
from pynvml import *  # noqa: F403

MAX_LINKS = 18  # NVML_NVLINK_MAX_LINKS
P2P_READ = 0  # NVML_P2P_CAPS_INDEX_READ, which the package has as a tuple


def ask(call, *arguments):
    try:
        return call(*arguments)
    except NVMLError as error:
        return {"error": error.value}


def text(value):
    return value.decode() if isinstance(value, bytes) else value


def sysfs_address(device):
    domain, rest = text(nvmlDeviceGetPciInfo(device).busId).lower().split(":", 1)
    return domain[-4:] + ":" + rest


def compute_capability(device):
    major, minor = nvmlDeviceGetCudaComputeCapability(device)
    return major * 10 + minor


def memory(device):
    try:
        info = nvmlDeviceGetMemoryInfo(device, nvmlMemory_v2)
        return {"total": info.total, "reserved": info.reserved, "used": info.used}
    except NVMLError_FunctionNotFound:
        info = nvmlDeviceGetMemoryInfo(device)
        return {"total": info.total, "reserved": None, "used": info.used}


def pair(call):
    def read(device):
        current, pending = call(device)
        return {"current": bool(current), "pending": bool(pending)}

    return read


def ecc_errors(kind):
    return lambda device: nvmlDeviceGetTotalEccErrors(device, kind, NVML_VOLATILE_ECC)


def remapped_rows(device):
    correctable, uncorrectable, pending, failed = nvmlDeviceGetRemappedRows(device)
    return {
        "correctable": correctable,
        "uncorrectable": uncorrectable,
        "pending": bool(pending),
        "failed": bool(failed),
    }


def retired_pages(device):
    single = NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS
    double = NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR
    return {
        "single_bit": len(nvmlDeviceGetRetiredPages(device, single)),
        "double_bit": len(nvmlDeviceGetRetiredPages(device, double)),
        "pending": bool(nvmlDeviceGetRetiredPagesPendingStatus(device)),
    }


def processes(device):
    return [
        {"pid": process.pid, "used_bytes": process.usedGpuMemory}
        for process in nvmlDeviceGetComputeRunningProcesses(device)
    ]


def compute_mode(device):
    names = {
        NVML_COMPUTEMODE_DEFAULT: "default",
        NVML_COMPUTEMODE_EXCLUSIVE_THREAD: "exclusive-thread",
        NVML_COMPUTEMODE_PROHIBITED: "prohibited",
        NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive-process",
    }
    return names[nvmlDeviceGetComputeMode(device)]


def width(device):
    return {
        "current": nvmlDeviceGetCurrPcieLinkWidth(device),
        "max": nvmlDeviceGetMaxPcieLinkWidth(device),
    }


def generation(device):
    return {
        "current": nvmlDeviceGetCurrPcieLinkGeneration(device),
        "max": nvmlDeviceGetMaxPcieLinkGeneration(device),
    }


def nvlinks(device):
    links = []
    for link in range(MAX_LINKS):
        try:
            links.append({"link": link, "active": bool(nvmlDeviceGetNvLinkState(device, link))})
        except (NVMLError_NotSupported, NVMLError_InvalidArgument):
            break
    return links


def fabric(device):
    info = c_nvmlGpuFabricInfo_v2_t()
    info.version = nvmlGpuFabricInfo_v2
    nvmlDeviceGetGpuFabricInfoV(device, ctypes.byref(info))
    if info.state == NVML_GPU_FABRIC_STATE_NOT_SUPPORTED:
        return None
    return {"state": info.state, "status": info.status, "health_mask": info.healthMask}


def nvlink_errors(device):
    names = {
        "replays": NVML_NVLINK_ERROR_DL_REPLAY,
        "recoveries": NVML_NVLINK_ERROR_DL_RECOVERY,
        "crc": NVML_NVLINK_ERROR_DL_CRC_FLIT,
    }
    active = [link["link"] for link in nvlinks(device) if link["active"]]
    if not active:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)

    def total(counter):
        return sum(nvmlDeviceGetNvLinkErrorCounter(device, link, counter) for link in active)

    return {name: total(counter) for name, counter in names.items()}


def sram_threshold_exceeded(device):
    status = c_nvmlEccSramErrorStatus_v1_t()
    status.version = nvmlEccSramErrorStatus_v1
    try:
        nvmlDeviceGetSramEccErrorStatus(device, ctypes.byref(status))
    except NVMLError_FunctionNotFound:  # drivers before 550
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return bool(status.bThresholdExceeded)


def recovery_action(device):
    value = nvmlDeviceGetFieldValues(device, [NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])[0]
    if value.nvmlReturn != NVML_SUCCESS:
        return {"error": value.nvmlReturn}
    return value.value.uiVal


def gpu(device):
    answers = {
        "name": ask(lambda: text(nvmlDeviceGetName(device))),
        "uuid": ask(lambda: text(nvmlDeviceGetUUID(device))),
        "serial": ask(lambda: text(nvmlDeviceGetSerial(device))),
        "vbios": ask(lambda: text(nvmlDeviceGetVbiosVersion(device))),
        "gsp_firmware": ask(lambda: text(nvmlDeviceGetGspFirmwareVersion(device))),
        "pci_address": ask(sysfs_address, device),
        "minor_number": ask(nvmlDeviceGetMinorNumber, device),
        "numa_node": ask(nvmlDeviceGetNumaNodeId, device),
        "compute_capability": ask(compute_capability, device),
        "memory": ask(memory, device),
        "processes": ask(processes, device),
        "utilization_percent": ask(lambda: nvmlDeviceGetUtilizationRates(device).gpu),
        "compute_mode": ask(compute_mode, device),
        "mig": ask(pair(nvmlDeviceGetMigMode), device),
        "persistence": ask(lambda: bool(nvmlDeviceGetPersistenceMode(device))),
        "ecc": ask(pair(nvmlDeviceGetEccMode), device),
        "ecc_uncorrected_volatile": ask(ecc_errors(NVML_MEMORY_ERROR_TYPE_UNCORRECTED), device),
        "ecc_corrected_volatile": ask(ecc_errors(NVML_MEMORY_ERROR_TYPE_CORRECTED), device),
        "remapped_rows": ask(remapped_rows, device),
        "retired_pages": ask(retired_pages, device),
        "temperature_c": ask(nvmlDeviceGetTemperature, device, NVML_TEMPERATURE_GPU),
        "slowdown_temperature_c": ask(
            nvmlDeviceGetTemperatureThreshold, device, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        ),
        "power_limit_mw": ask(nvmlDeviceGetEnforcedPowerLimit, device),
        "power_limit_default_mw": ask(nvmlDeviceGetPowerManagementDefaultLimit, device),
        "pcie_width": ask(width, device),
        "pcie_generation": ask(generation, device),
        "pcie_replays": ask(nvmlDeviceGetPcieReplayCounter, device),
        "nvlinks": ask(nvlinks, device),
        "nvlink_errors": ask(nvlink_errors, device),
        "sram_threshold_exceeded": ask(sram_threshold_exceeded, device),
        "virtualization": ask(nvmlDeviceGetVirtualizationMode, device),
        "display_active": ask(lambda: bool(nvmlDeviceGetDisplayActive(device))),
        "bar1_bytes": ask(lambda: nvmlDeviceGetBAR1MemoryInfo(device).bar1Total),
        "fabric": ask(fabric, device),
        "recovery_action": ask(recovery_action, device),
    }
    reasons = ask(nvmlDeviceGetCurrentClocksThrottleReasons, device)
    answers["clock_event_reasons"] = reasons if isinstance(reasons, dict) else [reasons, reasons]
    return answers


def peers(devices, index):
    return [
        {
            "index": other,
            "p2p_read": nvmlDeviceGetP2PStatus(
                devices[index], devices[other], P2P_READ
            ),
            "path": nvmlDeviceGetTopologyCommonAncestor(devices[index], devices[other]),
        }
        for other in devices
        if other != index
    ]


def everything():
    try:
        nvmlInit()
    except NVMLError as error:
        return {"init": error.value}
    handles = [ask(nvmlDeviceGetHandleByIndex, index) for index in range(nvmlDeviceGetCount())]
    devices = {
        index: handle for index, handle in enumerate(handles) if not isinstance(handle, dict)
    }
    gpus = [gpu(handle) if index in devices else {"handle": handle["error"]}
            for index, handle in enumerate(handles)]
    for index in devices:
        gpus[index]["peers"] = ask(peers, devices, index)
    return {
        "init": 0,
        "driver_version": text(nvmlSystemGetDriverVersion()),
        "nvml_version": text(nvmlSystemGetNVMLVersion()),
        "cuda_version": nvmlSystemGetCudaDriverVersion_v2(),
        "gpus": gpus,
    }


def symbols():
    source = open(pynvml.__file__).read()
    names = sorted(set(re.findall(r'_nvmlGetFunctionPointer\("(\w+)"', source)))
    library = ctypes.CDLL("libnvidia-ml.so.1")
    return {"asked": len(names), "missing": [n for n in names if not hasattr(library, n)]}


def xid():
    nvmlInit()
    events = nvmlEventSetCreate()
    for index in range(nvmlDeviceGetCount()):
        nvmlDeviceRegisterEvents(
            nvmlDeviceGetHandleByIndex(index), nvmlEventTypeXidCriticalError, events
        )
    event = nvmlEventSetWait_v2(events, 5000)
    return {"gpu": nvmlDeviceGetIndex(event.device), "xid": event.eventData}


if __name__ == "__main__":
    modes = {"symbols": symbols, "xid": xid}
    mode = modes[sys.argv[1]] if len(sys.argv) > 1 else everything
    json.dump(mode(), sys.stdout)
