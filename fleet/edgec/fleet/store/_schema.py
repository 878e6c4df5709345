"""Tables of a fleet. Times are seconds since 1970 by the fleet's clock, digests are in hex."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

# Every constraint has a name, so that a later migration can name it, too.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
# SQLite counts up only what it calls INTEGER.
_SERIAL = BigInteger().with_variant(Integer, "sqlite")

devices = Table(
    "devices",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("hardware", String(64), nullable=False),
    Column("enrolled_at", Float, nullable=False),
    Column("revoked_at", Float),
    Column("revoked_reason", Text),
    Column("seen_at", Float, nullable=False, default=0.0),
    Column("online", Boolean, nullable=False, default=False),
    Column("fenced", Boolean, nullable=False, default=False),
    # Who has written last, for compare-and-set; and all that is believed of the device.
    Column("revision", BigInteger, nullable=False, default=0),
    Column("view", JSON, nullable=False),
    # Epoch of the newest order, and digest by model.
    Column("epoch", BigInteger, nullable=False, default=0),
    Column("wanted", JSON, nullable=False),
    # Of its newest report: the greatest epoch that it took notice of, and its alerts, by their words.
    Column("acknowledged", BigInteger, nullable=False, default=0),
    Column("alerts", Text, nullable=False, default=""),
)
labels = Table(
    "labels",
    metadata,
    Column("device", String(64), ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", String(256), nullable=False),
    Index("ix_labels_key_value", "key", "value"),
)
groups = Table(
    "groups",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("query", Text, nullable=False),
)
releases = Table(
    "releases",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
)
artifacts = Table(
    "artifacts",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("model", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    Column("target", String(64), nullable=False),
    Column("path", String(300), nullable=False, unique=True),
    Column("length", BigInteger, nullable=False),
    Column("content_digest", String(80), nullable=False),
    Column("reference", JSON, nullable=False),
    Column("input_reference", JSON, nullable=False, default=dict),
    Column("report", JSON),
    Column("uploaded_at", Float, nullable=False),
    Column("uploaded_by", String(128), nullable=False),
    Column("override", Text),
    Index("ix_artifacts_model_number", "model", "number"),
)
hardware = Table(
    "hardware",
    metadata,
    Column("sha256", String(64), ForeignKey("artifacts.sha256"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("model", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    Index("ix_hardware_newest", "model", "name", "number"),
)
rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("model", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("revision", BigInteger, nullable=False),
    Column("document", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("ix_rollouts_model_version", "model", "version"),
)
decisions = Table(
    "decisions",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("rollout", String(64), ForeignKey("rollouts.id"), nullable=False),
    Column("at", Float, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("device", String(64)),
    Column("body", JSON, nullable=False),
    Index("ix_decisions_rollout_id", "rollout", "id"),
)
assignments = Table(
    "assignments",
    metadata,
    Column("rollout", String(64), ForeignKey("rollouts.id"), primary_key=True),
    Column("device", String(64), ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("previous", String(64)),
    Column("epoch", BigInteger, nullable=False),
    Column("assigned_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("undone", Boolean, nullable=False, default=False),
    Column("phase", String(16), nullable=False),
    Column("phase_at", Float, nullable=False),
    Column("reason", String(64), nullable=False, default=""),
    Column("noticed", Boolean, nullable=False, default=False),
    Column("confirmed", Boolean, nullable=False, default=False),
    Index("ix_assignments_device", "device"),
)
incidents = Table(
    "incidents",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("rollout", String(64)),
    Column("device", String(64)),
    Column("reason", String(256), nullable=False),
    Column("detail", Text, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("closed_at", Float),
    Column("closed_by", String(128)),
)
quarantine = Table(
    "quarantine",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("reason", String(256), nullable=False),
    Column("at", Float, nullable=False),
    Column("rollout", String(64)),
)
audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("body", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)
ledgers = Table(
    "ledgers",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("boot_id", String(64), primary_key=True),
    Column("up_to", BigInteger, nullable=False),
    Column("ranges", JSON, nullable=False),
    Column("at", Float, nullable=False, index=True),
)
records = Table(
    "records",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("boot_id", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("received_at", Float, nullable=False, index=True),
    Column("severity", String(16), nullable=False, default="info"),
    Column("payload", LargeBinary, nullable=False),
    # What an event says of, where it is one.
    Column("word", String(64), nullable=False, default=""),
    Index("ix_records_device_received_at", "device", "received_at"),
)
_FIGURES = (
    ("seconds", Float),
    ("calls", BigInteger),
    ("errors", BigInteger),
    ("sampled", BigInteger),
    ("non_finite", BigInteger),
    ("crashes", BigInteger),
    ("compared", BigInteger),
    ("disagreed", BigInteger),
)
# What each device said of each artifact in each hour: for gates.
device_hours = Table(
    "device_hours",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("digest", String(16), primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    *(Column(name, kind, nullable=False, default=0) for name, kind in _FIGURES),
    Column("sketches", LargeBinary, nullable=False),
    Index("ix_device_hours_hour", "hour"),
)
# The same of all devices of a class of hardware: for percentiles of the fleet in as many rows as hours.
fleet_hours = Table(
    "fleet_hours",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("digest", String(16), primary_key=True),
    Column("hardware", String(64), primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    *(Column(name, kind, nullable=False, default=0) for name, kind in _FIGURES),
    Column("sketches", LargeBinary, nullable=False),
    Index("ix_fleet_hours_hour", "hour"),
)
tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    # SHA-256 of the token, which is kept nowhere.
    Column("hash", String(64), nullable=False, unique=True),
    Column("name", String(128), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("expires_at", Float),
    Column("used_at", Float),
    Column("revoked_at", Float),
)
idempotency = Table(
    "idempotency",
    metadata,
    Column("token", String(16), primary_key=True),
    Column("key", String(128), primary_key=True),
    # SHA-256 of the request, and the reply: status, and the sealed body; none while it is worked on.
    Column("request", String(64), nullable=False),
    Column("at", Float, nullable=False, index=True),
    Column("status", Integer),
    Column("reply", LargeBinary),
)
claims = Table(
    "claims",
    metadata,
    Column("id", String(16), primary_key=True),
    # SHA-256 of the claim, which is kept nowhere.
    Column("hash", String(64), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("expires_at", Float),
    Column("withdrawn_at", Float),
    Column("uses_left", Integer, nullable=False),
    # What a device that comes with it is given, or must be.
    Column("labels", JSON, nullable=False),
    Column("hardware", String(64)),
    Column("device", String(64)),
)
credentials = Table(
    "credentials",
    metadata,
    # SHA-256 of the device's public key, or of its token.
    Column("fingerprint", String(64), primary_key=True),
    Column("device", String(64), ForeignKey("devices.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("claim", String(16), nullable=False),
    Column("issued_at", Float, nullable=False),
    Column("replaced_at", Float),
    # Of its certificate, in hex.
    Column("serial", String(64), nullable=False, default=""),
    # Its certificate, PEM; or what a broker keeps of its token, by broker, JSON.
    Column("document", Text, nullable=False),
    # When its certificate does.
    Column("expires_at", Float),
)
# What devices were told over the broker; their `devices.epoch` is what they are to be told.
orders = Table(
    "orders",
    metadata,
    Column("device", String(64), ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", BigInteger, nullable=False, default=0),
    Column("revision", BigInteger, nullable=False, default=0),
    # Of the director's metadata, and when it expires.
    Column("version", BigInteger, nullable=False, default=0),
    Column("expires_at", Float, nullable=False, default=0.0),
    Column("told_at", Float, nullable=False, default=0.0),
    # Times that this epoch was told or tried, and when again, while nothing is heard.
    Column("tries", Integer, nullable=False, default=0),
    Column("next_at", Float, nullable=False, default=0.0, index=True),
    # Why it cannot be signed, or the fleet's files not be written that say it; "" where both could.
    Column("problem", Text, nullable=False, default=""),
)
alerts = Table(
    "alerts",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("rule", String(32), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("severity", String(16), nullable=False),
    Column("summary", Text, nullable=False),
    Column("figures", JSON, nullable=False),
    Column("raised_at", Float, nullable=False),
    # Since when the rule holds no more; and when that was long enough.
    Column("quiet_since", Float),
    Column("cleared_at", Float, index=True),
    Index("ix_alerts_rule_subject", "rule", "subject"),
)
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("sink", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("tries", Integer, nullable=False, default=0),
    Column("next_at", Float, nullable=False, index=True),
    # When it was taken; or given up, and why.
    Column("done_at", Float),
    Column("problem", Text, nullable=False, default=""),
)
drift = Table(
    "drift",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("digest", String(16), primary_key=True),
    Column("hardware", String(64), primary_key=True),
    # Whether of an input or an output; of an input, the name is that and its statistic: image/mean.
    Column("kind", String(8), primary_key=True, default="output"),
    Column("output", String(128), primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    # Hours that it took to have enough values, this one included.
    Column("hours", Integer, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("psi", Float, nullable=False),
    Column("ks", Float, nullable=False),
    Index("ix_drift_hour", "hour"),
)
FIGURES = tuple(name for name, _ in _FIGURES)
