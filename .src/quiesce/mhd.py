"""libmicrohttpd's manual in Python: its C names, argument orders and results.

NULL is None, an out parameter is a :class:`Cell`, errno is :func:`get_errno`.  A thin layer over
:class:`quiesce.Daemon`; docs/libmicrohttpd.md says, row by row, what is the same and what is better.
"""

from quiesce.worker.mhd.c_types import (
    FD_CLR as FD_CLR,
)
from quiesce.worker.mhd.c_types import (
    FD_ISSET as FD_ISSET,
)
from quiesce.worker.mhd.c_types import (
    FD_SET as FD_SET,
)
from quiesce.worker.mhd.c_types import (
    FD_SETSIZE as FD_SETSIZE,
)
from quiesce.worker.mhd.c_types import (
    FD_ZERO as FD_ZERO,
)
from quiesce.worker.mhd.c_types import (
    Cell as Cell,
)
from quiesce.worker.mhd.c_types import (
    fd_set as fd_set,
)
from quiesce.worker.mhd.c_types import (
    get_errno as get_errno,
)
from quiesce.worker.mhd.c_types import (
    set_errno as set_errno,
)
from quiesce.worker.mhd.connection import (
    MHD_get_connection_info as MHD_get_connection_info,
)
from quiesce.worker.mhd.connection import (
    MHD_get_connection_values as MHD_get_connection_values,
)
from quiesce.worker.mhd.connection import (
    MHD_get_reason_phrase_for as MHD_get_reason_phrase_for,
)
from quiesce.worker.mhd.connection import (
    MHD_get_reason_phrase_len_for as MHD_get_reason_phrase_len_for,
)
from quiesce.worker.mhd.connection import (
    MHD_http_unescape as MHD_http_unescape,
)
from quiesce.worker.mhd.connection import (
    MHD_lookup_connection_value as MHD_lookup_connection_value,
)
from quiesce.worker.mhd.connection import (
    MHD_queue_response as MHD_queue_response,
)
from quiesce.worker.mhd.connection import (
    MHD_resume_connection as MHD_resume_connection,
)
from quiesce.worker.mhd.connection import (
    MHD_set_connection_option as MHD_set_connection_option,
)
from quiesce.worker.mhd.connection import (
    MHD_set_connection_value as MHD_set_connection_value,
)
from quiesce.worker.mhd.connection import (
    MHD_suspend_connection as MHD_suspend_connection,
)
from quiesce.worker.mhd.constants import (
    MHD_CONNECTION_OPTION as MHD_CONNECTION_OPTION,
)
from quiesce.worker.mhd.constants import (
    MHD_CONTENT_READER_END_OF_STREAM as MHD_CONTENT_READER_END_OF_STREAM,
)
from quiesce.worker.mhd.constants import (
    MHD_CONTENT_READER_END_WITH_ERROR as MHD_CONTENT_READER_END_WITH_ERROR,
)
from quiesce.worker.mhd.constants import (
    MHD_FLAG as MHD_FLAG,
)
from quiesce.worker.mhd.constants import (
    MHD_INVALID_SOCKET as MHD_INVALID_SOCKET,
)
from quiesce.worker.mhd.constants import (
    MHD_NO as MHD_NO,
)
from quiesce.worker.mhd.constants import (
    MHD_OPTION as MHD_OPTION,
)
from quiesce.worker.mhd.constants import (
    MHD_SIZE_UNKNOWN as MHD_SIZE_UNKNOWN,
)
from quiesce.worker.mhd.constants import (
    MHD_YES as MHD_YES,
)
from quiesce.worker.mhd.constants import (
    MHD_ConnectionInfoType as MHD_ConnectionInfoType,
)
from quiesce.worker.mhd.constants import (
    MHD_ConnectionNotificationCode as MHD_ConnectionNotificationCode,
)
from quiesce.worker.mhd.constants import (
    MHD_DaemonInfoType as MHD_DaemonInfoType,
)
from quiesce.worker.mhd.constants import (
    MHD_RequestTerminationCode as MHD_RequestTerminationCode,
)
from quiesce.worker.mhd.constants import (
    MHD_ResponseFlags as MHD_ResponseFlags,
)
from quiesce.worker.mhd.constants import (
    MHD_ResponseMemoryMode as MHD_ResponseMemoryMode,
)
from quiesce.worker.mhd.constants import (
    MHD_ValueKind as MHD_ValueKind,
)
from quiesce.worker.mhd.daemon import (
    MHD_add_connection as MHD_add_connection,
)
from quiesce.worker.mhd.daemon import (
    MHD_Daemon as MHD_Daemon,
)
from quiesce.worker.mhd.daemon import (
    MHD_get_daemon_info as MHD_get_daemon_info,
)
from quiesce.worker.mhd.daemon import (
    MHD_get_fdset as MHD_get_fdset,
)
from quiesce.worker.mhd.daemon import (
    MHD_get_timeout as MHD_get_timeout,
)
from quiesce.worker.mhd.daemon import (
    MHD_get_version as MHD_get_version,
)
from quiesce.worker.mhd.daemon import (
    MHD_quiesce_daemon as MHD_quiesce_daemon,
)
from quiesce.worker.mhd.daemon import (
    MHD_run as MHD_run,
)
from quiesce.worker.mhd.daemon import (
    MHD_run_from_select as MHD_run_from_select,
)
from quiesce.worker.mhd.daemon import (
    MHD_run_wait as MHD_run_wait,
)
from quiesce.worker.mhd.daemon import (
    MHD_set_panic_func as MHD_set_panic_func,
)
from quiesce.worker.mhd.daemon import (
    MHD_start_daemon as MHD_start_daemon,
)
from quiesce.worker.mhd.daemon import (
    MHD_stop_daemon as MHD_stop_daemon,
)
from quiesce.worker.mhd.response import (
    MHD_add_response_footer as MHD_add_response_footer,
)
from quiesce.worker.mhd.response import (
    MHD_add_response_header as MHD_add_response_header,
)
from quiesce.worker.mhd.response import (
    MHD_create_response_empty as MHD_create_response_empty,
)
from quiesce.worker.mhd.response import (
    MHD_create_response_from_buffer as MHD_create_response_from_buffer,
)
from quiesce.worker.mhd.response import (
    MHD_create_response_from_buffer_copy as MHD_create_response_from_buffer_copy,
)
from quiesce.worker.mhd.response import (
    MHD_create_response_from_buffer_static as MHD_create_response_from_buffer_static,
)
from quiesce.worker.mhd.response import (
    MHD_create_response_from_buffer_with_free_callback as MHD_create_response_from_buffer_with_free_callback,
)
from quiesce.worker.mhd.response import (
    MHD_create_response_from_buffer_with_free_callback_cls as MHD_create_response_from_buffer_with_free_callback_cls,
)
from quiesce.worker.mhd.response import (
    MHD_create_response_from_callback as MHD_create_response_from_callback,
)
from quiesce.worker.mhd.response import (
    MHD_create_response_from_fd as MHD_create_response_from_fd,
)
from quiesce.worker.mhd.response import (
    MHD_create_response_from_fd64 as MHD_create_response_from_fd64,
)
from quiesce.worker.mhd.response import (
    MHD_create_response_from_fd_at_offset64 as MHD_create_response_from_fd_at_offset64,
)
from quiesce.worker.mhd.response import (
    MHD_create_response_from_iovec as MHD_create_response_from_iovec,
)
from quiesce.worker.mhd.response import (
    MHD_create_response_from_pipe as MHD_create_response_from_pipe,
)
from quiesce.worker.mhd.response import (
    MHD_del_response_header as MHD_del_response_header,
)
from quiesce.worker.mhd.response import (
    MHD_destroy_response as MHD_destroy_response,
)
from quiesce.worker.mhd.response import (
    MHD_get_response_header as MHD_get_response_header,
)
from quiesce.worker.mhd.response import (
    MHD_get_response_headers as MHD_get_response_headers,
)
from quiesce.worker.mhd.response import (
    MHD_set_response_options as MHD_set_response_options,
)

MHD_NO_FLAG = MHD_FLAG.MHD_NO_FLAG
MHD_USE_ERROR_LOG = MHD_FLAG.MHD_USE_ERROR_LOG
MHD_USE_TLS = MHD_FLAG.MHD_USE_TLS
MHD_USE_THREAD_PER_CONNECTION = MHD_FLAG.MHD_USE_THREAD_PER_CONNECTION
MHD_USE_INTERNAL_POLLING_THREAD = MHD_FLAG.MHD_USE_INTERNAL_POLLING_THREAD
MHD_USE_IPv6 = MHD_FLAG.MHD_USE_IPv6
MHD_USE_POLL = MHD_FLAG.MHD_USE_POLL
MHD_USE_SUPPRESS_DATE_NO_CLOCK = MHD_FLAG.MHD_USE_SUPPRESS_DATE_NO_CLOCK
MHD_USE_NO_LISTEN_SOCKET = MHD_FLAG.MHD_USE_NO_LISTEN_SOCKET
MHD_USE_EPOLL = MHD_FLAG.MHD_USE_EPOLL
MHD_USE_ITC = MHD_FLAG.MHD_USE_ITC
MHD_USE_DUAL_STACK = MHD_FLAG.MHD_USE_DUAL_STACK
MHD_USE_TURBO = MHD_FLAG.MHD_USE_TURBO
MHD_ALLOW_SUSPEND_RESUME = MHD_FLAG.MHD_ALLOW_SUSPEND_RESUME
MHD_ALLOW_UPGRADE = MHD_FLAG.MHD_ALLOW_UPGRADE
MHD_USE_AUTO = MHD_FLAG.MHD_USE_AUTO
MHD_USE_NO_THREAD_SAFETY = MHD_FLAG.MHD_USE_NO_THREAD_SAFETY
MHD_OPTION_END = MHD_OPTION.MHD_OPTION_END
MHD_OPTION_CONNECTION_MEMORY_LIMIT = MHD_OPTION.MHD_OPTION_CONNECTION_MEMORY_LIMIT
MHD_OPTION_CONNECTION_LIMIT = MHD_OPTION.MHD_OPTION_CONNECTION_LIMIT
MHD_OPTION_CONNECTION_TIMEOUT = MHD_OPTION.MHD_OPTION_CONNECTION_TIMEOUT
MHD_OPTION_NOTIFY_COMPLETED = MHD_OPTION.MHD_OPTION_NOTIFY_COMPLETED
MHD_OPTION_PER_IP_CONNECTION_LIMIT = MHD_OPTION.MHD_OPTION_PER_IP_CONNECTION_LIMIT
MHD_OPTION_SOCK_ADDR = MHD_OPTION.MHD_OPTION_SOCK_ADDR
MHD_OPTION_URI_LOG_CALLBACK = MHD_OPTION.MHD_OPTION_URI_LOG_CALLBACK
MHD_OPTION_LISTEN_SOCKET = MHD_OPTION.MHD_OPTION_LISTEN_SOCKET
MHD_OPTION_EXTERNAL_LOGGER = MHD_OPTION.MHD_OPTION_EXTERNAL_LOGGER
MHD_OPTION_THREAD_POOL_SIZE = MHD_OPTION.MHD_OPTION_THREAD_POOL_SIZE
MHD_OPTION_ARRAY = MHD_OPTION.MHD_OPTION_ARRAY
MHD_OPTION_UNESCAPE_CALLBACK = MHD_OPTION.MHD_OPTION_UNESCAPE_CALLBACK
MHD_OPTION_CONNECTION_MEMORY_INCREMENT = MHD_OPTION.MHD_OPTION_CONNECTION_MEMORY_INCREMENT
MHD_OPTION_NOTIFY_CONNECTION = MHD_OPTION.MHD_OPTION_NOTIFY_CONNECTION
MHD_OPTION_LISTEN_BACKLOG_SIZE = MHD_OPTION.MHD_OPTION_LISTEN_BACKLOG_SIZE
MHD_HEADER_KIND = MHD_ValueKind.MHD_HEADER_KIND
MHD_COOKIE_KIND = MHD_ValueKind.MHD_COOKIE_KIND
MHD_POSTDATA_KIND = MHD_ValueKind.MHD_POSTDATA_KIND
MHD_GET_ARGUMENT_KIND = MHD_ValueKind.MHD_GET_ARGUMENT_KIND
MHD_FOOTER_KIND = MHD_ValueKind.MHD_FOOTER_KIND
MHD_REQUEST_TERMINATED_COMPLETED_OK = MHD_RequestTerminationCode.MHD_REQUEST_TERMINATED_COMPLETED_OK
MHD_REQUEST_TERMINATED_WITH_ERROR = MHD_RequestTerminationCode.MHD_REQUEST_TERMINATED_WITH_ERROR
MHD_REQUEST_TERMINATED_TIMEOUT_REACHED = MHD_RequestTerminationCode.MHD_REQUEST_TERMINATED_TIMEOUT_REACHED
MHD_REQUEST_TERMINATED_DAEMON_SHUTDOWN = MHD_RequestTerminationCode.MHD_REQUEST_TERMINATED_DAEMON_SHUTDOWN
MHD_REQUEST_TERMINATED_READ_ERROR = MHD_RequestTerminationCode.MHD_REQUEST_TERMINATED_READ_ERROR
MHD_REQUEST_TERMINATED_CLIENT_ABORT = MHD_RequestTerminationCode.MHD_REQUEST_TERMINATED_CLIENT_ABORT
MHD_CONNECTION_NOTIFY_STARTED = MHD_ConnectionNotificationCode.MHD_CONNECTION_NOTIFY_STARTED
MHD_CONNECTION_NOTIFY_CLOSED = MHD_ConnectionNotificationCode.MHD_CONNECTION_NOTIFY_CLOSED
MHD_RESPMEM_PERSISTENT = MHD_ResponseMemoryMode.MHD_RESPMEM_PERSISTENT
MHD_RESPMEM_MUST_FREE = MHD_ResponseMemoryMode.MHD_RESPMEM_MUST_FREE
MHD_RESPMEM_MUST_COPY = MHD_ResponseMemoryMode.MHD_RESPMEM_MUST_COPY
MHD_RF_NONE = MHD_ResponseFlags.MHD_RF_NONE
MHD_RF_HTTP_1_0_COMPATIBLE_STRICT = MHD_ResponseFlags.MHD_RF_HTTP_1_0_COMPATIBLE_STRICT
MHD_RF_HTTP_1_0_SERVER = MHD_ResponseFlags.MHD_RF_HTTP_1_0_SERVER
MHD_RF_INSANITY_HEADER_CONTENT_LENGTH = MHD_ResponseFlags.MHD_RF_INSANITY_HEADER_CONTENT_LENGTH
MHD_RF_SEND_KEEP_ALIVE_HEADER = MHD_ResponseFlags.MHD_RF_SEND_KEEP_ALIVE_HEADER
MHD_RF_HEAD_ONLY_RESPONSE = MHD_ResponseFlags.MHD_RF_HEAD_ONLY_RESPONSE
MHD_DAEMON_INFO_KEY_SIZE = MHD_DaemonInfoType.MHD_DAEMON_INFO_KEY_SIZE
MHD_DAEMON_INFO_MAC_KEY_SIZE = MHD_DaemonInfoType.MHD_DAEMON_INFO_MAC_KEY_SIZE
MHD_DAEMON_INFO_LISTEN_FD = MHD_DaemonInfoType.MHD_DAEMON_INFO_LISTEN_FD
MHD_DAEMON_INFO_EPOLL_FD = MHD_DaemonInfoType.MHD_DAEMON_INFO_EPOLL_FD
MHD_DAEMON_INFO_CURRENT_CONNECTIONS = MHD_DaemonInfoType.MHD_DAEMON_INFO_CURRENT_CONNECTIONS
MHD_DAEMON_INFO_FLAGS = MHD_DaemonInfoType.MHD_DAEMON_INFO_FLAGS
MHD_DAEMON_INFO_BIND_PORT = MHD_DaemonInfoType.MHD_DAEMON_INFO_BIND_PORT
MHD_CONNECTION_INFO_CLIENT_ADDRESS = MHD_ConnectionInfoType.MHD_CONNECTION_INFO_CLIENT_ADDRESS
MHD_CONNECTION_INFO_DAEMON = MHD_ConnectionInfoType.MHD_CONNECTION_INFO_DAEMON
MHD_CONNECTION_INFO_CONNECTION_FD = MHD_ConnectionInfoType.MHD_CONNECTION_INFO_CONNECTION_FD
MHD_CONNECTION_INFO_SOCKET_CONTEXT = MHD_ConnectionInfoType.MHD_CONNECTION_INFO_SOCKET_CONTEXT
MHD_CONNECTION_INFO_CONNECTION_SUSPENDED = MHD_ConnectionInfoType.MHD_CONNECTION_INFO_CONNECTION_SUSPENDED
MHD_CONNECTION_INFO_CONNECTION_TIMEOUT = MHD_ConnectionInfoType.MHD_CONNECTION_INFO_CONNECTION_TIMEOUT
MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE = MHD_ConnectionInfoType.MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE
MHD_CONNECTION_INFO_HTTP_STATUS = MHD_ConnectionInfoType.MHD_CONNECTION_INFO_HTTP_STATUS
MHD_CONNECTION_OPTION_TIMEOUT = MHD_CONNECTION_OPTION.MHD_CONNECTION_OPTION_TIMEOUT
