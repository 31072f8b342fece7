/* The same answers as apps.py, by libmicrohttpd: its epoll loop in one thread.

   mhd PORT FILE      GET /: "Hello, world\n"; GET /file: the file, opened for each request; POST /: what was sent. */

#include <fcntl.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct upload {
    size_t size;
    char *data;
};

static struct upload nothing; /* of a request without a body */
static struct MHD_Response *hello;
static const char *file;

static enum MHD_Result answer(struct MHD_Connection *connection, struct MHD_Response *response)
{
    enum MHD_Result result;
    MHD_add_response_header(response, "Content-Type", "text/plain; charset=utf-8");
    result = MHD_queue_response(connection, 200, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result send_file(struct MHD_Connection *connection)
{
    struct stat status;
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) != 0)
        return MHD_NO;
    return answer(connection, MHD_create_response_from_fd(status.st_size, fd));
}

static enum MHD_Result handle(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
                              const char *version, const char *data, size_t *size, void **state)
{
    struct upload *upload = *state;
    (void)cls;
    (void)version;
    if (*state == NULL) { /* the first call: an answer now would be the connection's last */
        *state = strcmp(method, "GET") == 0 ? (void *)&nothing : calloc(1, sizeof *upload);
        return *state == NULL ? MHD_NO : MHD_YES;
    }
    if (upload == &nothing) {
        if (strcmp(url, "/file") == 0)
            return send_file(connection);
        return MHD_queue_response(connection, 200, hello);
    }
    if (*size > 0) {
        char *more = realloc(upload->data, upload->size + *size);
        if (more == NULL)
            return MHD_NO;
        memcpy(more + upload->size, data, *size);
        upload->data = more;
        upload->size += *size;
        *size = 0;
        return MHD_YES;
    }
    data = upload->data;
    upload->data = NULL;
    return answer(connection, MHD_create_response_from_buffer(upload->size, (void *)data, MHD_RESPMEM_MUST_FREE));
}

static void completed(void *cls, struct MHD_Connection *connection, void **state, enum MHD_RequestTerminationCode code)
{
    struct upload *upload = *state;
    (void)cls;
    (void)connection;
    (void)code;
    if (upload != NULL && upload != &nothing) {
        free(upload->data);
        free(upload);
    }
}

int main(int argc, char **argv)
{
    static char text[] = "Hello, world\n";
    struct MHD_Daemon *daemon;
    if (argc != 3)
        return 64;
    file = argv[2];
    hello = MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_PERSISTENT);
    MHD_add_response_header(hello, "Content-Type", "text/plain; charset=utf-8");
    daemon = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD, atoi(argv[1]), NULL, NULL, &handle, NULL,
                              MHD_OPTION_CONNECTION_LIMIT, 10000U, MHD_OPTION_NOTIFY_COMPLETED, &completed, NULL,
                              MHD_OPTION_END);
    if (daemon == NULL) {
        fprintf(stderr, "libmicrohttpd does not listen on port %s\n", argv[1]);
        return 1;
    }
    pause();
    return 0;
}
