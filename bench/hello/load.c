/* The load client: sends the requests of a file over and over, and counts whole answers with status 200.

   load PORT CONNECTIONS SECONDS DEPTH keep|close REQUESTS

   REQUESTS is a file of "LENGTH\n" and as many bytes, again and again.  Each connection sends DEPTH requests at once, waits
   for all their answers and sends the next; with "close" it has one request and waits for the server's FIN.
   One thread, one epoll set.  Prints: answers, seconds, faults.  An answer must have a Content-Length. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST_REQUESTS 4096
#define HEAD_ROOM 8192
#define BUFFER (256 * 1024)

struct connection {
    int fd;
    int waiting;      /* answers that are to come */
    size_t body_left; /* of the answer that is being read */
    size_t have;      /* bytes of a head that is not complete */
    char head[HEAD_ROOM];
};

static char *requests[MOST_REQUESTS];
static size_t lengths[MOST_REQUESTS];
static int count, next;
static int depth, closes, epoll;
static struct sockaddr_in address;
static unsigned long answers, faults;
static char out[1 << 20];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void read_requests(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        die(path);
    while (count < MOST_REQUESTS && fscanf(file, "%zu", &lengths[count]) == 1) {
        fgetc(file); /* the line's end */
        requests[count] = malloc(lengths[count]);
        if (requests[count] == NULL || fread(requests[count], 1, lengths[count], file) != lengths[count])
            die("a request is cut off");
        count++;
    }
    fclose(file);
    if (count == 0) {
        fprintf(stderr, "%s: no request in it\n", path);
        exit(1);
    }
}

static void ask(struct connection *c)
{
    size_t size = 0;
    for (int i = 0; i < depth; i++) {
        if (size + lengths[next] > sizeof out) {
            fprintf(stderr, "the requests are too long for this depth\n");
            exit(1);
        }
        memcpy(out + size, requests[next], lengths[next]);
        size += lengths[next];
        next = (next + 1) % count;
    }
    c->waiting = depth;
    if (send(c->fd, out, size, MSG_NOSIGNAL) != (ssize_t)size)
        die("send");
}

static void begin(struct connection *c)
{
    int one = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0)
        die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) != 0)
        die("epoll_ctl");
    c->have = c->body_left = 0;
    ask(c);
}

static void again(struct connection *c)
{
    close(c->fd);
    begin(c);
}

/* The length of the body that a whole head announces; counts the answer. */
static size_t judge(const char *head, size_t size)
{
    const char *line = head, *end = head + size;
    if (size < 12 || memcmp(head + 8, " 200", 4) != 0)
        faults++;
    while ((line = memchr(line, '\n', end - line)) != NULL) {
        line++;
        if (end - line > 15 && strncasecmp(line, "content-length:", 15) == 0)
            return strtoul(line + 15, NULL, 10);
    }
    fprintf(stderr, "an answer without a Content-Length:\n%.*s\n", (int)size, head);
    exit(1);
}

static void answered(struct connection *c)
{
    answers++;
    if (--c->waiting == 0 && !closes)
        ask(c);
}

/* What was read: bodies are skipped, heads judged, a part of a head kept. */
static void take(struct connection *c, const char *data, size_t size)
{
    while (size > 0) {
        if (c->body_left > 0) {
            size_t part = c->body_left < size ? c->body_left : size;
            c->body_left -= part;
            data += part;
            size -= part;
            if (c->body_left == 0)
                answered(c);
            continue;
        }
        size_t before = c->have;
        size_t part = size < HEAD_ROOM - before ? size : HEAD_ROOM - before;
        const char *head = data;
        size_t whole = part;
        if (before > 0) {
            memcpy(c->head + before, data, part);
            head = c->head;
            whole = before + part;
        }
        const char *end = memmem(head, whole, "\r\n\r\n", 4);
        if (end == NULL) {
            if (whole == HEAD_ROOM) {
                fprintf(stderr, "a head is too long\n");
                exit(1);
            }
            if (before == 0)
                memcpy(c->head, data, part);
            c->have = whole;
            return;
        }
        size_t length = end + 4 - head;
        c->body_left = judge(head, length);
        c->have = 0;
        data += length - before;
        size -= length - before;
        if (c->body_left == 0)
            answered(c);
    }
}

static void ready(struct connection *c)
{
    static char buffer[BUFFER];
    ssize_t size = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (size > 0) {
        take(c, buffer, size);
        return;
    }
    if (size < 0 && errno == EAGAIN)
        return;
    if (size < 0 || !closes || c->waiting != 0)
        faults++;
    again(c);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    if (argc != 7) {
        fprintf(stderr, "load PORT CONNECTIONS SECONDS DEPTH keep|close REQUESTS\n");
        return 64;
    }
    int connections = atoi(argv[2]);
    double seconds = atof(argv[3]);
    depth = atoi(argv[4]);
    closes = strcmp(argv[5], "close") == 0;
    read_requests(argv[6]);
    address.sin_family = AF_INET;
    address.sin_port = htons(atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct connection *all = calloc(connections, sizeof *all);
    if (epoll < 0 || all == NULL)
        die("epoll");
    for (int i = 0; i < connections; i++)
        begin(&all[i]);
    double began = now(), over = began + seconds, t;
    struct epoll_event events[256];
    while ((t = now()) < over) {
        int n = epoll_wait(epoll, events, 256, 100);
        for (int i = 0; i < n; i++)
            ready(events[i].data.ptr);
    }
    printf("%lu %.6f %lu\n", answers, t - began, faults);
    return 0;
}
