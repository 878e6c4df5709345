"""Streams: models over cameras, video, files, sound and messages, with back-pressure and deadlines.

    from edgec.runtime import load
    from edgec.runtime.streams import Stream

    with load("faces.edgec") as session, Stream("rtsp://camera/1", session, deadline_ms=200) as stream:
        for result in stream:
            print(result.prediction, result.age_ms)

Video needs the extra ``vision``, MQTT the extra ``agent``; sound and files need nothing.
"""

from edgec.runtime.streams._audio import AudioWindows, Microphone
from edgec.runtime.streams._buffer import POLICIES, Policy
from edgec.runtime.streams._files import Files
from edgec.runtime.streams._mqtt import MqttSink, MqttSource
from edgec.runtime.streams._open import open_source
from edgec.runtime.streams._predictors import Hosted, Recurrent, WithFixed, check_fed_by_one
from edgec.runtime.streams._results import StreamResult, StreamStatistics
from edgec.runtime.streams._sinks import ImageSink, JsonlSink, Sink, VideoSink, annotation_sink, open_sink
from edgec.runtime.streams._source import Captured, Items, Source
from edgec.runtime.streams._stream import Predictor, Reconnect, Stream
from edgec.runtime.streams._video import Video

__all__ = [
    "POLICIES",
    "AudioWindows",
    "Captured",
    "Files",
    "Hosted",
    "ImageSink",
    "Items",
    "JsonlSink",
    "Microphone",
    "MqttSink",
    "MqttSource",
    "Policy",
    "Predictor",
    "Reconnect",
    "Recurrent",
    "Sink",
    "Source",
    "Stream",
    "StreamResult",
    "StreamStatistics",
    "Video",
    "VideoSink",
    "WithFixed",
    "annotation_sink",
    "check_fed_by_one",
    "open_sink",
    "open_source",
]
