from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AskRepository(_message.Message):
    __slots__ = ["begin", "confirm", "discard", "ends", "lock", "look", "make", "names", "publish", "publish_first", "read_at", "remove", "sweep", "unlock", "write"]
    class Begin(_message.Message):
        __slots__ = []
        def __init__(self) -> None: ...
    class Confirm(_message.Message):
        __slots__ = []
        def __init__(self) -> None: ...
    class Discard(_message.Message):
        __slots__ = ["draft"]
        DRAFT_FIELD_NUMBER: _ClassVar[int]
        draft: int
        def __init__(self, draft: _Optional[int] = ...) -> None: ...
    class Ends(_message.Message):
        __slots__ = ["head", "places", "tail"]
        HEAD_FIELD_NUMBER: _ClassVar[int]
        PLACES_FIELD_NUMBER: _ClassVar[int]
        TAIL_FIELD_NUMBER: _ClassVar[int]
        head: int
        places: _containers.RepeatedScalarFieldContainer[str]
        tail: int
        def __init__(self, places: _Optional[_Iterable[str]] = ..., head: _Optional[int] = ..., tail: _Optional[int] = ...) -> None: ...
    class Lock(_message.Message):
        __slots__ = ["exclusive", "patience_ms"]
        EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
        PATIENCE_MS_FIELD_NUMBER: _ClassVar[int]
        exclusive: bool
        patience_ms: int
        def __init__(self, exclusive: bool = ..., patience_ms: _Optional[int] = ...) -> None: ...
    class Look(_message.Message):
        __slots__ = []
        def __init__(self) -> None: ...
    class Make(_message.Message):
        __slots__ = []
        def __init__(self) -> None: ...
    class Names(_message.Message):
        __slots__ = ["folder"]
        FOLDER_FIELD_NUMBER: _ClassVar[int]
        folder: str
        def __init__(self, folder: _Optional[str] = ...) -> None: ...
    class Publish(_message.Message):
        __slots__ = ["draft", "place"]
        DRAFT_FIELD_NUMBER: _ClassVar[int]
        PLACE_FIELD_NUMBER: _ClassVar[int]
        draft: int
        place: str
        def __init__(self, draft: _Optional[int] = ..., place: _Optional[str] = ...) -> None: ...
    class PublishFirst(_message.Message):
        __slots__ = ["data", "place"]
        DATA_FIELD_NUMBER: _ClassVar[int]
        PLACE_FIELD_NUMBER: _ClassVar[int]
        data: bytes
        place: str
        def __init__(self, place: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...
    class ReadAt(_message.Message):
        __slots__ = ["length", "offset", "place"]
        LENGTH_FIELD_NUMBER: _ClassVar[int]
        OFFSET_FIELD_NUMBER: _ClassVar[int]
        PLACE_FIELD_NUMBER: _ClassVar[int]
        length: int
        offset: int
        place: str
        def __init__(self, place: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...
    class Remove(_message.Message):
        __slots__ = ["places"]
        PLACES_FIELD_NUMBER: _ClassVar[int]
        places: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, places: _Optional[_Iterable[str]] = ...) -> None: ...
    class Sweep(_message.Message):
        __slots__ = []
        def __init__(self) -> None: ...
    class Unlock(_message.Message):
        __slots__ = []
        def __init__(self) -> None: ...
    class Write(_message.Message):
        __slots__ = ["data", "draft"]
        DATA_FIELD_NUMBER: _ClassVar[int]
        DRAFT_FIELD_NUMBER: _ClassVar[int]
        data: bytes
        draft: int
        def __init__(self, draft: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    CONFIRM_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    LOCK_FIELD_NUMBER: _ClassVar[int]
    LOOK_FIELD_NUMBER: _ClassVar[int]
    MAKE_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FIRST_FIELD_NUMBER: _ClassVar[int]
    READ_AT_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    SWEEP_FIELD_NUMBER: _ClassVar[int]
    UNLOCK_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    begin: AskRepository.Begin
    confirm: AskRepository.Confirm
    discard: AskRepository.Discard
    ends: AskRepository.Ends
    lock: AskRepository.Lock
    look: AskRepository.Look
    make: AskRepository.Make
    names: AskRepository.Names
    publish: AskRepository.Publish
    publish_first: AskRepository.PublishFirst
    read_at: AskRepository.ReadAt
    remove: AskRepository.Remove
    sweep: AskRepository.Sweep
    unlock: AskRepository.Unlock
    write: AskRepository.Write
    def __init__(self, look: _Optional[_Union[AskRepository.Look, _Mapping]] = ..., make: _Optional[_Union[AskRepository.Make, _Mapping]] = ..., names: _Optional[_Union[AskRepository.Names, _Mapping]] = ..., ends: _Optional[_Union[AskRepository.Ends, _Mapping]] = ..., read_at: _Optional[_Union[AskRepository.ReadAt, _Mapping]] = ..., remove: _Optional[_Union[AskRepository.Remove, _Mapping]] = ..., publish_first: _Optional[_Union[AskRepository.PublishFirst, _Mapping]] = ..., begin: _Optional[_Union[AskRepository.Begin, _Mapping]] = ..., write: _Optional[_Union[AskRepository.Write, _Mapping]] = ..., publish: _Optional[_Union[AskRepository.Publish, _Mapping]] = ..., discard: _Optional[_Union[AskRepository.Discard, _Mapping]] = ..., lock: _Optional[_Union[AskRepository.Lock, _Mapping]] = ..., confirm: _Optional[_Union[AskRepository.Confirm, _Mapping]] = ..., unlock: _Optional[_Union[AskRepository.Unlock, _Mapping]] = ..., sweep: _Optional[_Union[AskRepository.Sweep, _Mapping]] = ...) -> None: ...

class DataOpened(_message.Message):
    __slots__ = ["certificate", "lane", "port", "streams"]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    lane: bool
    port: int
    streams: int
    def __init__(self, port: _Optional[int] = ..., certificate: _Optional[bytes] = ..., lane: bool = ..., streams: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ["code", "hint", "id", "kind", "message"]
    CODE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    hint: str
    id: int
    kind: str
    message: str
    def __init__(self, id: _Optional[int] = ..., code: _Optional[int] = ..., kind: _Optional[str] = ..., message: _Optional[str] = ..., hint: _Optional[str] = ...) -> None: ...

class Facts(_message.Message):
    __slots__ = ["boot_id", "cgroup", "cpu_features", "criu_version", "disk_available", "features", "freezer", "kernel", "machine", "memory_available", "page_size", "realtime_ns"]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    CPU_FEATURES_FIELD_NUMBER: _ClassVar[int]
    CRIU_VERSION_FIELD_NUMBER: _ClassVar[int]
    DISK_AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    FREEZER_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    REALTIME_NS_FIELD_NUMBER: _ClassVar[int]
    boot_id: str
    cgroup: str
    cpu_features: _containers.RepeatedScalarFieldContainer[str]
    criu_version: str
    disk_available: int
    features: _containers.RepeatedScalarFieldContainer[str]
    freezer: str
    kernel: str
    machine: str
    memory_available: int
    page_size: int
    realtime_ns: int
    def __init__(self, kernel: _Optional[str] = ..., machine: _Optional[str] = ..., criu_version: _Optional[str] = ..., cgroup: _Optional[str] = ..., freezer: _Optional[str] = ..., cpu_features: _Optional[_Iterable[str]] = ..., features: _Optional[_Iterable[str]] = ..., memory_available: _Optional[int] = ..., disk_available: _Optional[int] = ..., page_size: _Optional[int] = ..., boot_id: _Optional[str] = ..., realtime_ns: _Optional[int] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ["migration_id"]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    migration_id: str
    def __init__(self, migration_id: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class Hello(_message.Message):
    __slots__ = ["for_memory", "migration_id", "protocol_max", "protocol_min", "software"]
    FOR_MEMORY_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAX_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MIN_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    for_memory: bool
    migration_id: str
    protocol_max: int
    protocol_min: int
    software: str
    def __init__(self, protocol_min: _Optional[int] = ..., protocol_max: _Optional[int] = ..., software: _Optional[str] = ..., migration_id: _Optional[str] = ..., for_memory: bool = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ["facts", "host_id", "hostname", "protocol", "protocol_max", "protocol_min", "root", "serves", "software"]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAX_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MIN_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    SERVES_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    facts: Facts
    host_id: str
    hostname: str
    protocol: int
    protocol_max: int
    protocol_min: int
    root: str
    serves: _containers.RepeatedScalarFieldContainer[str]
    software: str
    def __init__(self, protocol: _Optional[int] = ..., software: _Optional[str] = ..., host_id: _Optional[str] = ..., hostname: _Optional[str] = ..., root: _Optional[str] = ..., facts: _Optional[_Union[Facts, _Mapping]] = ..., protocol_min: _Optional[int] = ..., protocol_max: _Optional[int] = ..., serves: _Optional[_Iterable[str]] = ...) -> None: ...

class Keepalive(_message.Message):
    __slots__ = ["migration_id"]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    migration_id: str
    def __init__(self, migration_id: _Optional[str] = ...) -> None: ...

class KeptAlive(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class OpenData(_message.Message):
    __slots__ = ["address", "certificate", "insists", "lane", "migration_id", "streams"]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    INSISTS_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    address: str
    certificate: bytes
    insists: bool
    lane: bool
    migration_id: str
    streams: int
    def __init__(self, migration_id: _Optional[str] = ..., certificate: _Optional[bytes] = ..., address: _Optional[str] = ..., lane: bool = ..., streams: _Optional[int] = ..., insists: bool = ...) -> None: ...

class Pages(_message.Message):
    __slots__ = ["hears_placed", "lane", "migration_id", "streams"]
    HEARS_PLACED_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    hears_placed: bool
    lane: bool
    migration_id: str
    streams: int
    def __init__(self, migration_id: _Optional[str] = ..., lane: bool = ..., hears_placed: bool = ..., streams: _Optional[int] = ...) -> None: ...

class PagesTaken(_message.Message):
    __slots__ = ["early", "pages", "wanted"]
    EARLY_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    early: int
    pages: int
    wanted: int
    def __init__(self, pages: _Optional[int] = ..., early: _Optional[int] = ..., wanted: _Optional[int] = ...) -> None: ...

class Prepare(_message.Message):
    __slots__ = ["migration_id"]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    migration_id: str
    def __init__(self, migration_id: _Optional[str] = ...) -> None: ...

class Prepared(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class PutChanges(_message.Message):
    __slots__ = ["migration_id", "round", "tree"]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    migration_id: str
    round: int
    tree: str
    def __init__(self, migration_id: _Optional[str] = ..., tree: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class PutFiles(_message.Message):
    __slots__ = ["migration_id", "tree"]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    migration_id: str
    tree: str
    def __init__(self, migration_id: _Optional[str] = ..., tree: _Optional[str] = ...) -> None: ...

class PutImageFiles(_message.Message):
    __slots__ = ["files", "manifest_json", "migration_id"]
    class File(_message.Message):
        __slots__ = ["name", "size"]
        NAME_FIELD_NUMBER: _ClassVar[int]
        SIZE_FIELD_NUMBER: _ClassVar[int]
        name: str
        size: int
        def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...
    FILES_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[PutImageFiles.File]
    manifest_json: bytes
    migration_id: str
    def __init__(self, migration_id: _Optional[str] = ..., manifest_json: _Optional[bytes] = ..., files: _Optional[_Iterable[_Union[PutImageFiles.File, _Mapping]]] = ...) -> None: ...

class PutImages(_message.Message):
    __slots__ = ["manifest_json", "migration_id"]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    manifest_json: bytes
    migration_id: str
    def __init__(self, migration_id: _Optional[str] = ..., manifest_json: _Optional[bytes] = ...) -> None: ...

class PutLayer(_message.Message):
    __slots__ = ["digest", "migration_id"]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    digest: str
    migration_id: str
    def __init__(self, migration_id: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class Received(_message.Message):
    __slots__ = ["bytes"]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ["migration_id"]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    migration_id: str
    def __init__(self, migration_id: _Optional[str] = ...) -> None: ...

class Released(_message.Message):
    __slots__ = ["existed", "was_running"]
    EXISTED_FIELD_NUMBER: _ClassVar[int]
    WAS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    existed: bool
    was_running: bool
    def __init__(self, existed: bool = ..., was_running: bool = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ["data_opened", "finished", "hello", "id", "kept_alive", "pages_taken", "prepared", "received", "released", "repository_told", "reserved", "restored", "resumed", "status"]
    DATA_OPENED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    KEPT_ALIVE_FIELD_NUMBER: _ClassVar[int]
    PAGES_TAKEN_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    REPOSITORY_TOLD_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    data_opened: DataOpened
    finished: Finished
    hello: HelloReply
    id: int
    kept_alive: KeptAlive
    pages_taken: PagesTaken
    prepared: Prepared
    received: Received
    released: Released
    repository_told: RepositoryTold
    reserved: Reserved
    restored: Restored
    resumed: Resumed
    status: StatusReply
    def __init__(self, id: _Optional[int] = ..., hello: _Optional[_Union[HelloReply, _Mapping]] = ..., reserved: _Optional[_Union[Reserved, _Mapping]] = ..., prepared: _Optional[_Union[Prepared, _Mapping]] = ..., received: _Optional[_Union[Received, _Mapping]] = ..., restored: _Optional[_Union[Restored, _Mapping]] = ..., resumed: _Optional[_Union[Resumed, _Mapping]] = ..., released: _Optional[_Union[Released, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., status: _Optional[_Union[StatusReply, _Mapping]] = ..., kept_alive: _Optional[_Union[KeptAlive, _Mapping]] = ..., data_opened: _Optional[_Union[DataOpened, _Mapping]] = ..., pages_taken: _Optional[_Union[PagesTaken, _Mapping]] = ..., repository_told: _Optional[_Union[RepositoryTold, _Mapping]] = ...) -> None: ...

class RepositoryTold(_message.Message):
    __slots__ = ["data", "draft", "exists", "first", "foreign", "names", "owner", "pieces", "where"]
    class Piece(_message.Message):
        __slots__ = ["damage", "head", "size", "tail"]
        DAMAGE_FIELD_NUMBER: _ClassVar[int]
        HEAD_FIELD_NUMBER: _ClassVar[int]
        SIZE_FIELD_NUMBER: _ClassVar[int]
        TAIL_FIELD_NUMBER: _ClassVar[int]
        damage: str
        head: bytes
        size: int
        tail: bytes
        def __init__(self, size: _Optional[int] = ..., head: _Optional[bytes] = ..., tail: _Optional[bytes] = ..., damage: _Optional[str] = ...) -> None: ...
    DATA_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    EXISTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    draft: int
    exists: bool
    first: bool
    foreign: bool
    names: _containers.RepeatedScalarFieldContainer[str]
    owner: str
    pieces: _containers.RepeatedCompositeFieldContainer[RepositoryTold.Piece]
    where: str
    def __init__(self, where: _Optional[str] = ..., exists: bool = ..., foreign: bool = ..., names: _Optional[_Iterable[str]] = ..., pieces: _Optional[_Iterable[_Union[RepositoryTold.Piece, _Mapping]]] = ..., data: _Optional[bytes] = ..., draft: _Optional[int] = ..., owner: _Optional[str] = ..., first: bool = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ["ask_repository", "finish", "hello", "id", "keepalive", "open_data", "pages", "prepare", "put_changes", "put_files", "put_image_files", "put_images", "put_layer", "release", "reserve", "restore", "resume", "status"]
    ASK_REPOSITORY_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_FIELD_NUMBER: _ClassVar[int]
    OPEN_DATA_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    PUT_CHANGES_FIELD_NUMBER: _ClassVar[int]
    PUT_FILES_FIELD_NUMBER: _ClassVar[int]
    PUT_IMAGES_FIELD_NUMBER: _ClassVar[int]
    PUT_IMAGE_FILES_FIELD_NUMBER: _ClassVar[int]
    PUT_LAYER_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ask_repository: AskRepository
    finish: Finish
    hello: Hello
    id: int
    keepalive: Keepalive
    open_data: OpenData
    pages: Pages
    prepare: Prepare
    put_changes: PutChanges
    put_files: PutFiles
    put_image_files: PutImageFiles
    put_images: PutImages
    put_layer: PutLayer
    release: Release
    reserve: Reserve
    restore: Restore
    resume: Resume
    status: Status
    def __init__(self, id: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., reserve: _Optional[_Union[Reserve, _Mapping]] = ..., prepare: _Optional[_Union[Prepare, _Mapping]] = ..., put_layer: _Optional[_Union[PutLayer, _Mapping]] = ..., put_files: _Optional[_Union[PutFiles, _Mapping]] = ..., put_images: _Optional[_Union[PutImages, _Mapping]] = ..., restore: _Optional[_Union[Restore, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., status: _Optional[_Union[Status, _Mapping]] = ..., keepalive: _Optional[_Union[Keepalive, _Mapping]] = ..., open_data: _Optional[_Union[OpenData, _Mapping]] = ..., pages: _Optional[_Union[Pages, _Mapping]] = ..., ask_repository: _Optional[_Union[AskRepository, _Mapping]] = ..., put_changes: _Optional[_Union[PutChanges, _Mapping]] = ..., put_image_files: _Optional[_Union[PutImageFiles, _Mapping]] = ...) -> None: ...

class Reserve(_message.Message):
    __slots__ = ["disk_bytes", "expires_s", "image_json", "layers", "memory_bytes", "migration_id", "name", "record_json", "source_host", "spec_json"]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    IMAGE_JSON_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RECORD_JSON_FIELD_NUMBER: _ClassVar[int]
    SOURCE_HOST_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    disk_bytes: int
    expires_s: int
    image_json: bytes
    layers: _containers.RepeatedScalarFieldContainer[str]
    memory_bytes: int
    migration_id: str
    name: str
    record_json: bytes
    source_host: str
    spec_json: bytes
    def __init__(self, migration_id: _Optional[str] = ..., name: _Optional[str] = ..., record_json: _Optional[bytes] = ..., spec_json: _Optional[bytes] = ..., layers: _Optional[_Iterable[str]] = ..., memory_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., expires_s: _Optional[int] = ..., source_host: _Optional[str] = ..., image_json: _Optional[bytes] = ...) -> None: ...

class Reserved(_message.Message):
    __slots__ = ["missing_layers"]
    MISSING_LAYERS_FIELD_NUMBER: _ClassVar[int]
    missing_layers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, missing_layers: _Optional[_Iterable[str]] = ...) -> None: ...

class Restore(_message.Message):
    __slots__ = ["migration_id"]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    migration_id: str
    def __init__(self, migration_id: _Optional[str] = ...) -> None: ...

class Restored(_message.Message):
    __slots__ = ["pid", "seconds"]
    PID_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    pid: int
    seconds: float
    def __init__(self, pid: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ["frames", "migration_id"]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedScalarFieldContainer[bytes]
    migration_id: str
    def __init__(self, migration_id: _Optional[str] = ..., frames: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Resumed(_message.Message):
    __slots__ = ["already", "realtime_ns"]
    ALREADY_FIELD_NUMBER: _ClassVar[int]
    REALTIME_NS_FIELD_NUMBER: _ClassVar[int]
    already: bool
    realtime_ns: int
    def __init__(self, already: bool = ..., realtime_ns: _Optional[int] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ["migration_id"]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    migration_id: str
    def __init__(self, migration_id: _Optional[str] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ["name", "phase", "running"]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    name: str
    phase: str
    running: bool
    def __init__(self, phase: _Optional[str] = ..., name: _Optional[str] = ..., running: bool = ...) -> None: ...
