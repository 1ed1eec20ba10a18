"""What NVIDIA's device plugin tells a kubelet about this machine, as JSON.

    plugin_read.py PATH_OF_PLUGIN [unhealthy]

Each GPU has the UUID that the plugin announces, and the minor number of the device file that it passes on for it.
A plugin that does not start has a message instead. With `unhealthy`: the UUIDs that it takes away, as soon as
there are any.

It mounts a folder of its own over the kubelet's, so run it in a mount namespace: unshare -m.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time

import grpc

FOLDER = "/var/lib/kubelet/device-plugins"
SOCKET = FOLDER + "/nvidia-gpu.sock"
LIMIT = 20  # seconds, for each answer
os.chdir(os.path.dirname(os.path.abspath(__file__)))
protos, services = grpc.protos_and_services("device_plugin.proto")


def own_folder():
    """The plugin knows one place for its socket; nobody else may see it there."""
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "plugin", "/var/lib"], check=True)
    os.makedirs(FOLDER)


def start(plugin, log):
    """It needs no kubelet to serve. MIG stays out of sight, as in the test cluster."""
    arguments = ["--device-discovery-strategy=nvml", "--mig-strategy=none", "--pass-device-specs", "--kubelet-socket="]
    return subprocess.Popen([plugin, *arguments], stdout=log, stderr=subprocess.STDOUT)


def serves(process):
    """Whether it has come to serve; false if it has ended."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        if os.path.exists(SOCKET):
            return True
        time.sleep(0.02)
    sys.exit("the plugin neither serves nor ends")


def minor_number(plugin, uuid):
    request = protos.ContainerAllocateRequest(devices_ids=[uuid])
    answer = plugin.Allocate(protos.AllocateRequest(container_requests=[request]), timeout=LIMIT)
    (container,) = answer.container_responses
    assert container.envs["NVIDIA_VISIBLE_DEVICES"] == uuid, container
    (number,) = re.findall(r"/dev/nvidia(\d+)\b", " ".join(device.host_path for device in container.devices))
    return int(number)


def ask(wants_unhealthy):
    with grpc.insecure_channel("unix:" + SOCKET) as channel:
        plugin = services.DevicePluginStub(channel)
        for answer in plugin.ListAndWatch(protos.Empty(), timeout=LIMIT, wait_for_ready=True):
            unhealthy = [device.ID for device in answer.devices if device.health != "Healthy"]
            if not wants_unhealthy:
                gpus = [device.ID for device in answer.devices]
                return {"gpus": {uuid: minor_number(plugin, uuid) for uuid in gpus}}
            if unhealthy:
                return {"unhealthy": unhealthy}


own_folder()
with tempfile.TemporaryFile("w+") as log:
    process = start(sys.argv[1], log)
    try:
        if serves(process):
            answer = ask(sys.argv[2:] == ["unhealthy"])
        else:
            log.seek(0)
            answer = {"message": log.read()}
    finally:
        process.kill()
        process.wait()
print(json.dumps(answer))
