// The floor for any server: epoll, and one send() of ready bytes for each client and message. floor PORT
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>

static int clients[65536], n, one = 1;

static void answer(int fd, const char *s) { send(fd, s, strlen(s), MSG_NOSIGNAL); }

static void publish(int fd, char *request) {
    char chunk[65536], event[65000], *text = strstr(request, "\r\n\r\n")+4, *times = strstr(request, "times=");
    int size = snprintf(event, sizeof event, "event: tick\ndata: %s\n\n", text);
    int whole = snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n", size, event);
    for (int k = times ? atoi(times+6) : 1; k; k--)
        for (int i = 0; i<n; i++) send(clients[i], chunk, whole, MSG_NOSIGNAL);
    answer(fd, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
}

int main(int argc, char **argv) {
    static char request[65000];
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int all = epoll_create1(0), door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(door, (void *)&at, sizeof at) || listen(door, 4096)) return perror("listen"), 1;
    struct epoll_event e = {.events = EPOLLIN, .data.fd = door}, ready[512];
    epoll_ctl(all, EPOLL_CTL_ADD, door, &e);
    for (;;)
        for (int i = epoll_wait(all, ready, 512, -1)-1; i>=0; i--) {
            int fd = ready[i].data.fd, got;
            if (fd==door) {
                if ((fd = accept(door, 0, 0))<0) continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                e.data.fd = fd;
                epoll_ctl(all, EPOLL_CTL_ADD, fd, &e);
            } else if ((got = recv(fd, request, sizeof request-1, 0))<=0) epoll_ctl(all, EPOLL_CTL_DEL, fd, 0);
            else if (request[got] = 0, *request=='P') publish(fd, request);
            else {
                clients[n++] = fd;
                answer(fd, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
            }
        }
}
