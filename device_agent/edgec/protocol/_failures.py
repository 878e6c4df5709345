"""Why a connection to a broker failed, in words that say what to do next."""

from __future__ import annotations

import socket
import ssl

from edgec.errors import LinkError

UNSUPPORTED_VERSION, TAKEN_OVER, NO_MATCHING_SUBSCRIBERS = 132, 142, 16

# Reason codes of MQTT 5; the library translates those of 3.1.1.
_ADVICE = {
    128: "the broker does not say why: look into its log",
    129: "the broker found a packet malformed: look into its log",
    130: "the broker found an error of protocol: look into its log",
    132: "it speaks another version of MQTT: allow 'auto'",
    133: "it takes no such client id: choose one of letters, digits, '_' and '-'",
    134: "check user name and password or token",
    135: "check what this identity may do: its certificate, password or token, and the broker's access list",
    136: "the broker's service is not available: it is tried again",
    137: "the broker is busy: it is tried again",
    138: "this client is banned: ask who runs the broker",
    140: "the broker wants another way of authentication",
    141: "it heard nothing in time: the network is slow, or this process was stopped",
    142: "another client came with the same id: is this device's identity used twice?",
    143: "it takes no such topic filter",
    144: "it takes no such topic",
    147: "more messages than it takes at a time were under way",
    149: "a message is larger than it takes: raise its maximum packet size",
    151: "a quota of this client is used up",
    156: "another server is to be used for now: change the address",
    157: "the server has moved: change the address",
    159: "connections come too fast: it is tried again",
}


def refused(what: str, code: int, name: str) -> LinkError:
    """Return the complaint that the broker refused something with a reason code."""
    return LinkError(f"the broker refuses {what} ({name}): {_ADVICE.get(code, 'look into its log')}")


def unreachable(where: str, e: Exception, timeout_s: float) -> LinkError:
    """Return the complaint that no connection could be made."""
    if isinstance(e, ssl.SSLCertVerificationError):
        return LinkError(
            f"the certificate of {where} is not to be trusted ({e.verify_message}): give the authority that "
            "issued it, the name that it was issued for, and check this machine's clock"
        )
    if isinstance(e, ssl.SSLError):
        return LinkError(f"no TLS with {where} ({_reason(e)}): is this port one for TLS, and {_CERTIFICATE}")
    if isinstance(e, socket.gaierror):
        return LinkError(f"the name of {where} cannot be resolved ({e.strerror}): check name and network")
    if isinstance(e, ConnectionRefusedError):
        return LinkError(f"nothing listens at {where}: check address and port, and that the broker runs")
    if isinstance(e, TimeoutError):
        return LinkError(f"{where} does not answer within {timeout_s:g} s: check network and firewall")
    return LinkError(f"{where} cannot be reached: {getattr(e, 'strerror', None) or e}")


_CERTIFICATE = "does the broker accept this client's certificate?"


def lost(where: str, said: str, *, connected: bool) -> LinkError:
    """Return the complaint that a connection ended without a word; `said` is the last error on the socket."""
    if "ssl" in said.lower() or "certificate" in said:
        return LinkError(f"TLS with {where} failed ({said[-200:]}): {_CERTIFICATE}")
    because = f" ({said[-200:]})" if said else ""
    if connected:
        return LinkError(f"the connection to {where} was lost{because}: it is made again")
    return LinkError(
        f"{where} ended the connection without an answer{because}: is it an MQTT broker, and does it "
        "want TLS or a certificate?"
    )


def _reason(e: ssl.SSLError) -> str:
    return str(e.reason or e.strerror or e)
